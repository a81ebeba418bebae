"""Automatic prices: the rule, what a token costs the owner, and what other workers ask."""
