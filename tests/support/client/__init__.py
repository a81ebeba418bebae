"""The client's side of a job for tests: stores, gateways, and workers that do as told."""
