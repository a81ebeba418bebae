"""`client init` that kills itself at a chosen step of its writes, as `kill -9` would.

    python -P -m tests.support.client.dying_setup HOME DEPLOYMENT STEP

STEP counts the steps of all writes from 0. The exit code is 0 if there were fewer steps.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from piecework.client.setup import set_up
from tests.support.system.dying_writer import DyingDisk

PASSWORD = "correct horse"

if __name__ == "__main__":
    home, deployment, step = sys.argv[1:]
    asyncio.run(
        set_up(
            Path(home),
            Path(deployment),
            ("http://index",),
            second_key=False,
            password=lambda: PASSWORD,
            disk=DyingDisk(int(step)),
        )
    )
