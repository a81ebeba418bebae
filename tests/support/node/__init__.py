"""Fakes of a worker's surroundings: journal, engine, chain, clock, each with the production
Protocol."""
