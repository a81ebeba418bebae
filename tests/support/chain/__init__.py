"""Chains for tests, real and fake, and what stands before and on them."""
