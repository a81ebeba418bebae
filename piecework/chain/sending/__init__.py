"""Transactions: what they may cost, which nonce they take, and what became of them."""
