"""Relays, namespaces and peers that misbehave."""
