"""Audits that a client buys: who audits, whether that one is honest, and what counts."""
