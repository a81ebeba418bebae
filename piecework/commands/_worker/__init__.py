"""What `piecework worker` is made of. Other commands use its estimate of earnings."""
