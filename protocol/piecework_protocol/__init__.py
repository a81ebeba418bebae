"""The Piecework protocol as pure code: typed data, receipts, vouchers, ledgers and sessions.

Nothing in this package performs IO, reads a clock or starts a task; time and keys are arguments.
`docs/protocol.md` holds the numbered clauses that the code cites.
"""
