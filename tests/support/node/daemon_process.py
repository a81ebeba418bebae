"""The real daemon with the stand-in engine: `python -m tests.support.node.daemon_process HOME
PACE_S`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from piecework_node.daemon.daemon import serve
from piecework_node.engine.supervisor import EngineCommandLine


def main() -> None:
    home, pace = Path(sys.argv[1]), sys.argv[2]
    child = EngineCommandLine(
        (sys.executable, "-P", "-m", "tests.support.node.engine_child", pace), dict(os.environ)
    )
    asyncio.run(serve(home, {}, os.environ["PIECEWORK_PASSWORD"], engine=child))


if __name__ == "__main__":
    main()
