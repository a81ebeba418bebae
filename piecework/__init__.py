"""The `piecework` command: one program for every role."""

__version__ = "0.1.0"
