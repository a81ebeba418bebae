"""Whether a worker runs in a home, and asking it to change or to end."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from piecework.chain.deployment import Deployment
from piecework_node.daemon.admin import ADDRESS_FILE, ask_daemon
from piecework_node.daemon.changing import ChangeReport, prepare_change
from piecework_node.errors import AdminError, JournalError
from piecework_node.home import Home
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.keys.operator import keystore_address
from piecework_protocol.types import parse_address

STOP_POLL_S: Final = 0.2
BUSY_S: Final = 0.2
"""For a process that is closing the journal."""


async def open_journal(home: Home) -> SqliteJournal:
    """Open the journal of a home whose worker is stopped.

    Raises:
        JournalLocked: a worker runs.
        PieceworkError: the journal, the key or the deployment cannot be read.
    """
    operator = parse_address("0x" + keystore_address(home.operator))
    domain = Deployment.load(home.deployment).domain
    return await SqliteJournal.open(home.journal, domain, operator)


async def is_running(home: Home) -> bool:
    """Whether a process holds the journal of a home, be it ready or still starting.

    Raises:
        PieceworkError: the journal cannot be read.
    """
    return home.journal.exists() and await asyncio.to_thread(_is_held, home.journal)


def _is_held(journal: Path) -> bool:
    """Whether another process has the lock. Nothing in the file is looked at, or brought up to
    date."""
    try:
        with closing(sqlite3.connect(journal, timeout=BUSY_S, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            return True
        raise JournalError(f"cannot open {journal}: {error}") from None
    except sqlite3.Error as error:
        raise JournalError(f"cannot open {journal}: {error}") from None
    return False


async def change_settings(
    home: Home, texts: Mapping[str, str], unset: Collection[str]
) -> ChangeReport | None:
    """Change settings of a home, by its worker if one runs. None: none does, and they are written.

    Raises:
        AdminError: a worker runs, and it refuses or does not answer.
        PieceworkError: as `changing.prepare_change`.
    """
    if not await is_running(home):
        token = Deployment.load(home.deployment).payment_token
        change = await asyncio.to_thread(prepare_change, home, token, texts, unset)
        await asyncio.to_thread(change.write)
        return None
    _require_address(home)
    body = json.dumps({"set": dict(texts), "unset": list(unset)}).encode()
    return ChangeReport.from_json(await ask_daemon(home.root, "POST", "/settings", body))


def _require_address(home: Home) -> None:
    if not (home.root / ADDRESS_FILE).exists():
        raise AdminError(
            f"the worker of {home.root} is still starting. Run this again when it is ready"
        )


async def drain(home: Home, wait_s: float) -> bool:
    """Ask a running worker to end, and wait. Return whether it has ended.

    Raises:
        AdminError: it does not answer.
    """
    if not await is_running(home):
        return True
    _require_address(home)
    await ask_daemon(home.root, "POST", "/drain")
    try:
        async with asyncio.timeout(wait_s):
            while await is_running(home):  # noqa: ASYNC110  another process ends
                await asyncio.sleep(STOP_POLL_S)
    except TimeoutError:
        return False
    return True
