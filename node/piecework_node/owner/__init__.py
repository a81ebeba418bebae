"""The owner of the machine comes first: what is watched of it, and when jobs pause."""
