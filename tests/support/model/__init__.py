"""Checkpoints, engines and prompts for tests of the model."""
