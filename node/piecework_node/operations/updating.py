"""A new version beside the old one: checked, switched to, and left again if it does not get ready.

An installation is a folder with an environment for each version and a link, which the service
starts. Every environment is made whole before the link moves. The link moves in one step.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import pwd
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

from piecework.base.files import SYSTEM_DISK, shown
from piecework.base.text import one_line
from piecework_node.daemon.admin import ask_daemon
from piecework_node.errors import AdminError, UpdateRefused
from piecework_node.home import Home
from piecework_node.operations.running import drain

WHEEL_NAME: Final = re.compile(r"piecework-(?P<version>[0-9][\w.+!]*)(-[^-]+){3,4}\.whl")
DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")
MAX_WHEEL_BYTES: Final = 2**30
CHUNK_BYTES: Final = 2**20
INSTALL_S: Final = 1800.0
CHECK_S: Final = 900.0
STOP_S: Final = 200.0
"""For a service to drain. systemd kills after TimeoutStopSec, 150 s in our units."""
BACK_S: Final = 1800.0
"""For the version of before to get ready again, with the largest models."""
POLL_S: Final = 0.5
MARK: Final = ".complete"
"""In an environment that was made to its end."""
PREVIOUS: Final = ".previous"
"""Beside the link: the environment that it named before."""
BY_HAND: Final = "the update was ended by hand"
MAX_SAID: Final = 2000
WAYS: Final = "docs/owners/install.md, Which way"
KEEPERS: Final = {
    "pipx_metadata.json": ("pipx", "pipx install --force"),
    "uv-receipt.toml": ("uv", "uv tool install --force"),
}
"""Tools that keep an environment: the file that each leaves in it, and what replaces a version."""


class WorkerService(Protocol):
    """What starts and ends the worker."""

    async def stop(self) -> None:
        """End it, with a drain.

        Raises:
            UpdateRefused: it does not end.
        """
        ...

    async def start(self) -> None:
        """Start it by the link.

        Raises:
            UpdateRefused: it cannot be started.
        """
        ...

    def has_died(self) -> bool:
        """Whether it is certain that it will not get ready."""
        ...


@dataclass(frozen=True, slots=True)
class Installation:
    """Environments beside a link."""

    link: Path

    @property
    def current(self) -> Path:
        """The environment that the link names.

        Raises:
            UpdateRefused: it names none.
        """
        found = self.link.resolve()
        if not self.link.is_symlink() or not (found / "pyvenv.cfg").is_file():
            raise UpdateRefused(
                f"{shown(self.link)} is not a link to an environment. Make it with ln -s, and let "
                f"what starts the worker start {self.link}/bin/piecework: {WAYS}"
            )
        return found

    @property
    def folder(self) -> Path:
        return self.link.parent

    def switch(self, environment: Path) -> None:
        """Let the link name another environment, in one step."""
        fresh = self.folder / f".{self.link.name}.{os.getpid()}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(environment.name)
        fresh.replace(self.link)
        SYSTEM_DISK.sync_folder(self.folder)

    def remember(self, environment: Path) -> None:
        """Keep which environment to go back to."""
        (self.folder / PREVIOUS).write_text(environment.name)

    def previous(self) -> Path | None:
        """The environment to go back to."""
        try:
            name = (self.folder / PREVIOUS).read_text().strip()
        except OSError:
            return None
        found = self.folder / name
        return found if name and "/" not in name and (found / "pyvenv.cfg").is_file() else None


def installation_of(prefix: Path, link: Path | None, wheel: Path) -> Installation:
    """Find the environments of whoever runs this command.

    Args:
        prefix: The environment of the command.
        link: What the caller names. None: `current` beside the environment.
        wheel: The new version, to say how it is installed without a link.

    Raises:
        UpdateRefused: there is no such link. The text says what to do in this environment.
    """
    found = Installation(link or prefix.parent / "current")
    if link is not None or found.link.is_symlink():
        _ = found.current
        return found
    for mark, (tool, command) in KEEPERS.items():
        if (prefix / mark).is_file():
            raise UpdateRefused(
                f"{tool} keeps this environment, so {tool} has to change its version. Compare "
                f"sha256sum {shown(wheel)} with the digest that you trust. Then run: piecework "
                f"worker drain, {command} '{shown(wheel.absolute())}[worker]', and start the "
                "worker. Nothing goes back by itself then. For that install the other way: "
                f"{WAYS}"
            )
    if not (prefix / "pyvenv.cfg").is_file():
        raise UpdateRefused(
            f"{shown(prefix)} is not an environment of its own, so nothing can be made beside it. "
            f"In a container start the new image. Elsewhere install again: {WAYS}"
        )
    raise UpdateRefused(
        f"{shown(found.link)} is not a link to an environment. To keep this one, run: ln -s "
        f"{prefix.name} {found.link}, and let what starts the worker start "
        f"{found.link}/bin/piecework: {WAYS}"
    )


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel whose bytes were compared with a digest."""

    path: Path
    version: str
    digest: str


def take_wheel(wheel: Path, digest: str, folder: Path) -> Wheel:
    """Copy a wheel into a folder, and hold the copy to its digest.

    Raises:
        UpdateRefused: it is not a wheel of piecework, or has another digest.
    """
    name = WHEEL_NAME.fullmatch(wheel.name)
    if name is None:
        raise UpdateRefused(f"{shown(wheel)} is not a wheel of piecework")
    if DIGEST.fullmatch(digest) is None:
        raise UpdateRefused("--sha256 is 64 hexadecimal digits")
    copy, found, size = folder / wheel.name, sha256(), 0
    try:
        with wheel.open("rb") as source, copy.open("wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                size += len(chunk)
                if size > MAX_WHEEL_BYTES:
                    raise UpdateRefused(f"{shown(wheel)} is larger than {MAX_WHEEL_BYTES} bytes")
                found.update(chunk)
                target.write(chunk)
    except OSError as error:
        raise UpdateRefused(f"cannot read {shown(wheel)}: {error.strerror}") from None
    if not hmac.compare_digest(found.hexdigest(), digest.lower()):
        raise UpdateRefused(
            f"{shown(wheel)} has the digest {found.hexdigest()}, not the given one. "
            "Nothing was installed"
        )
    return Wheel(copy, name["version"], digest.lower())


# --- environments


def run(command: Sequence[str], timeout_s: float, **more: object) -> str:
    """Run a program to its end, and return what it said on stdout.

    Raises:
        UpdateRefused: it failed. The text has the end of what it said.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            **more,  # type: ignore[call-overload]
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UpdateRefused(
            f"{Path(command[0]).name} failed: {one_line(str(error), 300)}"
        ) from None
    if done.returncode:
        said = (done.stdout + done.stderr)[-MAX_SAID:].strip()
        raise UpdateRefused(f"{' '.join(command[1:4])} failed: {one_line(said, MAX_SAID)}")
    return str(done.stdout)


def make_environment(installation: Installation, wheel: Wheel, locks: Sequence[Path]) -> Path:
    """Make the environment of a wheel beside the current one, or return it if it is there.

    Without locks its other packages are those of the current environment.

    Raises:
        UpdateRefused: it cannot be made. The current one is as it was.
    """
    old = installation.current
    new = installation.folder / f"piecework-{wheel.version}-{wheel.digest[:12]}"
    if new == old or (new / MARK).is_file():
        return new
    if new.exists():
        shutil.rmtree(new)
    shared = "include-system-site-packages = true" in (old / "pyvenv.cfg").read_text()
    options = ["--system-site-packages"] if shared else []
    base = str(getattr(sys, "_base_executable", sys.executable))
    run([base, "-P", "-m", "venv", "--without-pip", *options, str(new)], INSTALL_S)
    pip = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input"]
    pip += ["--python", str(new / "bin" / "python")]
    if locks:
        files = [word for lock in locks for word in ("-r", str(lock))]
        run([*pip, "install", "--require-hashes", *files], INSTALL_S)
    else:
        _copy_packages(_packages(old), _packages(new))
    run([*pip, "install", "--no-index", "--no-deps", str(wheel.path)], INSTALL_S)
    _check_needs(pip)
    (new / MARK).touch()
    return new


def _packages(environment: Path) -> Path:
    found = sorted((environment / "lib").glob("python3*/site-packages"))
    if len(found) != 1:
        raise UpdateRefused(f"{shown(environment)} is not an environment of one Python")
    return found[0]


def _copy_packages(old: Path, new: Path) -> None:
    """Give an environment the packages of another but piecework itself, without their bytes."""
    own = {
        line.partition(",")[0]
        for record in old.glob("piecework-*.dist-info/RECORD")
        for line in record.read_text().splitlines()
    }

    def ignored(folder: str, names: list[str]) -> set[str]:
        inside = Path(folder).relative_to(old)
        return {n for n in names if n == "__pycache__" or (inside / n).as_posix() in own}

    shutil.copytree(
        old, new, symlinks=True, ignore=ignored, copy_function=_link, dirs_exist_ok=True
    )


def _link(source: str, target: str) -> str:
    """A second name of a file, or a copy where there are no links."""
    if not os.path.lexists(target):
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, target)
    return target


def _check_needs(pip: Sequence[str]) -> None:
    """Refuse an environment that lacks what the new version needs. Faults of others are theirs."""
    try:
        run([*pip, "check"], INSTALL_S)
    except UpdateRefused as error:
        if re.search(r"\bpiecework [^ ]+ (requires|has requirement)", str(error)):
            raise UpdateRefused(
                f"the new version needs other packages: {error}. Give its lock files with --lock"
            ) from None


# --- the worker


class SystemdUnit:
    """A worker that systemd runs. Implements `WorkerService`."""

    def __init__(self, unit: str, *, program: str = "systemctl") -> None:
        self._unit, self._program = unit, program

    async def stop(self) -> None:
        await asyncio.to_thread(run, [self._program, "stop", self._unit], STOP_S)

    async def start(self) -> None:
        await asyncio.to_thread(run, [self._program, "start", self._unit], STOP_S)

    def has_died(self) -> bool:
        return False  # it starts the worker again itself


class BackgroundWorker:
    """A worker that we start ourselves and leave running. Implements `WorkerService`."""

    def __init__(self, link: Path, home: Home, environment: Mapping[str, str]) -> None:
        self._link, self._home, self._environment = link, home, dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    async def stop(self) -> None:
        mine = self._process
        if mine is not None and mine.poll() is None:
            mine.terminate()
            try:
                await asyncio.to_thread(mine.wait, STOP_S)
            except subprocess.TimeoutExpired:
                mine.kill()
                await asyncio.to_thread(mine.wait)
        elif not await drain(self._home, STOP_S):
            raise UpdateRefused("the worker still drains. Run this again")
        self._process = None

    async def start(self) -> None:
        self._process = await asyncio.to_thread(self._begin)

    def _begin(self) -> subprocess.Popen[bytes]:
        command = [str(self._link / "bin" / "piecework"), "worker", "start"]
        try:
            with (self._home.root / "worker.log").open("ab") as log:
                return subprocess.Popen(
                    [*command, "--home", str(self._home.root)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise UpdateRefused(f"cannot start the worker: {error.strerror}") from None

    def has_died(self) -> bool:
        return self._process is not None and self._process.poll() is not None


@dataclass(frozen=True, slots=True)
class UpdateWishes:
    """What a person asks for."""

    wheel: Path
    digest: str
    locks: tuple[Path, ...]
    ready_within_s: float


class Updater:
    """Brings a home's worker to another version, or leaves it at its own."""

    def __init__(
        self,
        installation: Installation,
        home: Home,
        service: WorkerService,
        environment: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        """`environment` is for `worker check`, with the key's password."""
        self._installation, self._home, self._service = installation, home, service
        self._environment, self._say = dict(environment), say

    async def update(self, wishes: UpdateWishes) -> Path:
        """Return the environment that the worker runs in now.

        Raises:
            UpdateRefused: the worker runs in the environment of before, or the text says why not.
        """
        with tempfile.TemporaryDirectory() as folder:
            wheel = await asyncio.to_thread(take_wheel, wishes.wheel, wishes.digest, Path(folder))
            self._say(f"{wheel.path.name} has the given digest")
            old = self._installation.current
            new = await asyncio.to_thread(make_environment, self._installation, wheel, wishes.locks)
        if new == old:
            # An earlier run was cut off after the link moved.
            old = self._installation.previous() or old
        self._say(f"{new.name} is made")
        try:
            await self._service.stop()
        except asyncio.CancelledError:  # a drain cannot be called back
            self._say("the worker drains, and is started again then")
            await self._service.stop()
            raise await self._again(self._installation.current, BY_HAND) from None
        self._say("the worker has drained")
        try:
            schema = await asyncio.to_thread(schema_of, self._home.journal)
        except UpdateRefused as error:  # the new version has touched nothing yet
            raise await self._again(old, str(error)) from None
        try:
            await asyncio.to_thread(self._check, new)
            self._say("it passes its check")
            self._installation.remember(old)
            self._installation.switch(new)
        except UpdateRefused as error:
            return await self._back(old, schema, str(error))
        except asyncio.CancelledError:
            return await self._back(old, schema, BY_HAND)
        except OSError as error:
            return await self._back(old, schema, f"cannot switch to {new.name}: {error.strerror}")
        trouble = await self._starts(new, wishes.ready_within_s)
        if trouble is None:
            self._say("ready")
            return new
        await self._service.stop()
        return await self._back(old, schema, trouble)

    def _check(self, environment: Path) -> None:
        command = [str(environment / "bin" / "piecework"), "worker", "check"]
        command += ["--home", str(self._home.root)]
        run(command, CHECK_S, env=self._environment, **owner_of(self._home.root))

    async def _starts(self, environment: Path, within_s: float) -> str | None:
        """Start what the link names, and wait until it is ready. None: it is. Else why not."""
        try:
            await self._service.start()
        except UpdateRefused as error:
            return str(error)
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if await self._is_up():
                return None
            if self._service.has_died():
                return f"{environment.name} ended before it was ready"
            await asyncio.sleep(POLL_S)
        return f"{environment.name} was not ready within {within_s:g} s"

    async def _is_up(self) -> bool:
        """Whether the worker is ready, or would be if its owner did not need the machine."""
        with contextlib.suppress(AdminError):
            await ask_daemon(self._home.root, "GET", "/ready")
            return True
        with contextlib.suppress(AdminError):
            status = await ask_daemon(self._home.root, "GET", "/status")
            # It is paused from its first second on. Its first offer is the end of its start.
            return status.get("state") == "paused" and bool(status.get("offer"))
        return False

    async def _back(self, old: Path, schema: int | None, why: str) -> Path:
        """Start the old version again, and say why. `schema` is the one that it can read."""
        try:
            found = await asyncio.to_thread(schema_of, self._home.journal)
        except UpdateRefused as error:
            raise UpdateRefused(
                f"{why}. {error}, so nothing went back. The worker is stopped"
            ) from None
        if found != schema:
            raise UpdateRefused(
                f"{why}. The new version has changed the journal, which the old one cannot read "
                "any more, so nothing went back. The worker is stopped"
            )
        raise await self._again(old, why)

    async def _again(self, old: Path, why: str) -> UpdateRefused:
        """Start the old version again. Returns why, and what became of it."""
        try:
            if self._installation.link.resolve() != old:
                self._installation.switch(old)
        except OSError as error:
            return UpdateRefused(
                f"{why}. {shown(self._installation.link)} cannot go back: {error.strerror}. "
                "The worker is stopped"
            )
        trouble = await self._starts(old, BACK_S)
        return UpdateRefused(f"{why}. {trouble or f'{old.name} runs again'}")


def owner_of(folder: Path) -> dict[str, object]:
    """How a program of root becomes the owner of a home: files that it makes are the owner's."""
    if os.geteuid():
        return {}
    found = folder.stat()
    if not found.st_uid:
        return {}
    name = pwd.getpwuid(found.st_uid).pw_name
    groups = os.getgrouplist(name, found.st_gid)
    return {"user": found.st_uid, "group": found.st_gid, "extra_groups": groups}


def schema_of(journal: Path) -> int | None:
    """Return the schema of a journal that nobody has open. None: there is none.

    Nothing is written beside it: a file of another user there would be in the worker's way. One
    that was not closed is copied first.

    Raises:
        UpdateRefused: it cannot be read or copied.
    """
    if not journal.exists():
        return None
    side = journal.with_name(journal.name + "-wal")
    try:
        if not side.exists() or not side.stat().st_size:
            return _schema_in(journal)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / journal.name
            for file in (journal, side):
                shutil.copyfile(file, copy.with_name(file.name))
            return _schema_in(copy, "mode=rw")
    except OSError as error:
        raise UpdateRefused(f"cannot read {shown(journal)}: {error.strerror}") from None
    except sqlite3.Error as error:
        raise UpdateRefused(f"cannot read {shown(journal)}: {error}") from None


def _schema_in(file: Path, how: str = "immutable=1") -> int:
    place = f"file:{quote(str(file.absolute()))}?{how}"
    with contextlib.closing(sqlite3.connect(place, uri=True)) as opened:
        return int(opened.execute("PRAGMA user_version").fetchone()[0])
