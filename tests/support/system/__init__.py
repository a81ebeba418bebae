"""Processes, terminals, disks and installations for tests."""
