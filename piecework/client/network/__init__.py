"""How the client reaches workers and indexes."""
