"""The explorer: pages for people over what the index holds. They are readable without a script."""
