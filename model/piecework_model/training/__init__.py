"""Training of the bundled checkpoint: `python -m piecework_model.training`. Not needed to serve."""
