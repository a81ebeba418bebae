"""What `piecework client` is made of. Other commands use its home and its options."""
