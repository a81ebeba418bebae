"""What `piecework worker status` and `estimate` say of prices, and of who reaches the worker."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Row = tuple[str, str]


def price_rows(prices: dict[str, Any]) -> list[Row]:
    """Return what is asked, why, and when the worker looks next, from `/status`."""
    if not prices["automatic"]:
        return [("automatic", "off: your own prices are asked")]
    rows = [("automatic", "on")] + [
        (f"  {name}", text) for name, text in prices.get("why", {}).items()
    ]
    due = prices.get("next_look_at")
    if due is not None:
        rows.append(("  next look", datetime.fromtimestamp(due, UTC).strftime("%H:%M:%S UTC")))
    return rows


def reached_line(status: dict[str, Any]) -> str:
    """Return what became of dials from outside, and who dialled, from `/status`."""
    found = ", ".join(f"{address} {word}" for address, word in status["reached"].items())
    return f"{found} (by {', '.join(status['dialled_by'])})" if found else "-"


def running_prices(root: Path) -> dict[str, Any] | None:
    """Return what the running worker of a home says of its prices. None: none runs."""
    from piecework.base.errors import PieceworkError
    from piecework_node.daemon.admin import ask_daemon

    try:
        status = asyncio.run(ask_daemon(root, "GET", "/status"))
    except PieceworkError:
        return None
    prices: dict[str, Any] = status["prices"]
    return prices
