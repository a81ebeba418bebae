"""Health checks for containers without curl: `python -P -m piecework.health http|rpc URL`.

The exit code is 0 or 1. A proxy of the environment is used as everywhere else, so not for an
address of this machine.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from piecework.base.http import HttpError, HttpLimits, HttpReader

LIMITS: Final = HttpLimits(total_s=4, connect_s=4, max_bytes=2**20)
CHAIN_ID: Final = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}


async def healthy(kind: str, url: str) -> bool:
    """Whether `url` answers: with a 2xx (http), or as a JSON-RPC node with a chain id (rpc)."""
    async with HttpReader(LIMITS) as http:
        try:
            if kind == "http":
                await http.get(url)
                return True
            answer = await http.post_json(url, CHAIN_ID)
        except HttpError:
            return False
    return isinstance(answer, dict) and "result" in answer


def main() -> int:
    """Entry point."""
    if len(sys.argv) != 3 or sys.argv[1] not in ("http", "rpc"):
        print("usage: python -P -m piecework.health http|rpc URL", file=sys.stderr)
        return 2
    return 0 if asyncio.run(healthy(sys.argv[1], sys.argv[2])) else 1


if __name__ == "__main__":
    sys.exit(main())
