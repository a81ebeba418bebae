"""Offers, indexes and auditors for tests, and whole markets in one process."""
