"""Other people's clients against the gateway, unmodified. `make agents` runs them."""
