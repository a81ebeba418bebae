"""The worker daemon: admission, journal, engine process, settlement, and what an operator sees of
them.

Decisions are pure functions (`admission`, `settlement_policy`) or the sans-IO sessions of
`protocol`; the rest of this package carries them out. Everything that the outside world decides
(clock, chain, GPU, disk) enters through a `typing.Protocol`, so that the simulation tests replay
whole workers from one seed.
"""
