"""The wire formats of the gateway: dictionaries to requests, and answers to dictionaries. Pure."""
