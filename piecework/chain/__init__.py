"""The only package that talks JSON-RPC: reads, builds and sends what the contracts offer.

Its rooms, bottom up: `contracts` (pure), `nodes` (the wire), `reading` and `sending`. Beside them
stand what every room needs, and what people hand to each other: `deployment`, `descriptor` and
`keystore`. `dev` has the chains for development.
"""
