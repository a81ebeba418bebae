"""The databases of an index for tests: a SQLite file, or a real PostgreSQL of its own.

The cluster lies in a temporary folder, listens on a unix socket only, and is thrown away. A server
refuses to run as root, so root starts it as the user `postgres` or `nobody`.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from piecework.market.offer_store import OfferStore
from piecework.market.storage.database import open_database
from piecework_protocol.eip712 import Domain
from piecework_protocol.types import Address, Timestamp
from tests.support.fake_chain import TOKEN

START: Final = 1_800_000_000
DEBIAN: Final = Path("/usr/lib/postgresql")
WAIT_S: Final = 60.0
_NUMBERS: Final = itertools.count(1)


async def an_offer_store(
    place: Path | str, domain: Domain, token: Address = TOKEN, now: int = START
) -> OfferStore:
    """Open a database, and the offers in it."""
    return await OfferStore.open(await open_database(place), domain, token, Timestamp(now))


class Cluster:
    """A running PostgreSQL server."""

    def __init__(self, folder: Path, execute: Callable[..., Any]) -> None:
        self._folder, self._execute = folder, execute
        self.last = ""
        """The address of the newest database."""

    def database(self) -> str:
        """Make an empty schema and return its address. A database would take 7 MB of the disk."""
        name = f"market{next(_NUMBERS)}"
        self.sql(f"CREATE SCHEMA {name}")
        self.last = f"postgresql://postgres@/postgres?host={self._folder}&search_path={name}"
        return self.last

    @contextmanager
    def away(self) -> Iterator[None]:
        """Crash the server, and start it again at the end."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def start(self) -> None:
        """Start the server, and wait until it serves."""
        options = f"-k {self._folder} -F -c listen_addresses="
        self._control("-l", str(self._folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """End the server at once."""
        self._control("-m", "immediate", "stop")

    def _control(self, *arguments: str) -> None:
        self._execute("pg_ctl", "-w", "-D", str(self._folder / "data"), *arguments)

    def sql(self, statement: str) -> None:
        """Execute a statement as the superuser."""
        socket = ("-h", str(self._folder), "-U", "postgres", "-d", "postgres")
        self._execute("psql", "--no-psqlrc", "--quiet", *socket, "-c", statement)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A server of its own. The test is skipped where PostgreSQL is not installed."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    user = _user()
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    who: dict[str, Any] = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid}
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
        who["extra_groups"] = []
    who |= {"cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}}

    def execute(program: str, *arguments: str) -> None:
        command = [str(programs / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=WAIT_S, **who)

    data = folder / "data"
    try:
        execute("initdb", "--no-sync", "-U", "postgres", "-A", "trust", "-D", str(data))
        running = Cluster(folder, execute)
        running.start()
        try:
            yield running
        finally:
            running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """One server for a test run. Each test makes a database of its own."""
    with cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.process)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where an index keeps its rows: each kind in turn, empty."""
    if request.param == "sqlite":
        return tmp_path / "market.db"
    running: Cluster = request.getfixturevalue("postgres")
    return running.database()


def _programs() -> Path | None:
    """The folder of the server's programs. Debian keeps them out of the path."""
    if found := shutil.which("pg_ctl"):
        return Path(found).resolve().parent
    return max((path.parent for path in DEBIAN.glob("*/bin/pg_ctl")), default=None)


def _user() -> pwd.struct_passwd | None:
    if os.getuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]
