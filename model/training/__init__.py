"""Training of the bundled checkpoint: `python -m model.training`. Not needed to serve."""
