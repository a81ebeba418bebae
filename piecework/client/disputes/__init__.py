"""Disputes from the client's side: what its evidence proves, and the way from there to payout."""
