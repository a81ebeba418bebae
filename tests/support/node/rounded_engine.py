"""The engine's process with other weights than it says: each is rounded to 8 bits.

Digest and profile are those of the model that it has loaded. `python -P -m
tests.support.node.rounded_engine`, with the options of the engine's process.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from bench.audit_workers import int8
from piecework_node.engine.process import Reports, load, main

if TYPE_CHECKING:
    from piecework_model.machine.planning import PlannedModel


def rounded(chosen: argparse.Namespace, reports: Reports) -> PlannedModel | None:
    """Load the model as it is told, and round its weights."""
    planned = load(chosen, reports)
    if planned is not None:
        int8(planned.loaded)
    return planned


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], rounded))
