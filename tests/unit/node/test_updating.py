"""`worker update` with a service in memory: a worker that was stopped runs again."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from piecework_node.errors import UpdateRefused
from piecework_node.home import Home
from piecework_node.operations.updating import (
    MARK,
    PREVIOUS,
    Installation,
    Updater,
    UpdateWishes,
    installation_of,
)
from tests.support.system.wheels import build_wheel, digest_of


class FakeService:
    """Implements `WorkerService`: it notes what the link names at each start, and dies then."""

    def __init__(self, link: Path) -> None:
        self._link, self.events = link, list[str]()

    async def stop(self) -> None:
        self.events.append("stop")

    async def start(self) -> None:
        self.events.append(f"start {self._link.resolve().name}")

    def has_died(self) -> bool:
        return self.events[-1] != "stop"


def environment(folder: Path, name: str) -> None:
    """An environment whose `piecework` succeeds in everything."""
    (folder / name / "bin").mkdir(parents=True)
    (folder / name / "pyvenv.cfg").touch()
    (folder / name / MARK).touch()
    program = folder / name / "bin" / "piecework"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)


def two_versions(folder: Path) -> tuple[Home, Path]:
    """A home, and the wheel of a second version whose environment is made already."""
    home = Home(folder / "home")
    home.create()
    wheel = build_wheel(folder, "2.0")
    environment(folder, "first")
    environment(folder, f"piecework-2.0-{digest_of(wheel)[:12]}")
    (folder / "current").symlink_to("first")
    return home, wheel


def lost_journal(place: Path) -> None:
    """What is beside the journal cannot be copied, as on a full disk."""
    (place / "home" / "journal.db-wal").mkdir()
    (place / "home" / "journal.db-wal" / "x").touch()


def lost_note(place: Path) -> None:
    (place / PREVIOUS).mkdir()


def lost_link(place: Path) -> None:
    (place / f".current.{os.getpid()}").mkdir()


@pytest.mark.parametrize("lose", [lost_journal, lost_note, lost_link])
async def test_a_disk_that_fails_while_the_worker_is_stopped_does_not_leave_it_so(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    home, wheel = two_versions(tmp_path)
    set_schema(home, 3)
    lose(tmp_path)
    service = FakeService(tmp_path / "current")
    with pytest.raises(UpdateRefused, match="first"):
        await update(tmp_path, home, wheel, service)
    assert service.events == ["stop", "start first"]


@dataclass(frozen=True, slots=True)
class HeldCheck:
    """An update whose check of the new version waits until it is let go."""

    service: FakeService
    updating: asyncio.Task[Path]
    begun: Path
    gate: Path

    async def ended_by_hand(self, change: Callable[[], None], match: str) -> None:
        """End the update while the check runs, which has done `change` by then."""
        await asyncio.to_thread(self.begun.read_text)
        change()
        self.updating.cancel()
        try:
            with pytest.raises(UpdateRefused, match=match):
                await self.updating
        finally:
            await asyncio.to_thread(self.gate.write_text, "go\n")


def update(folder: Path, home: Home, wheel: Path, service: FakeService) -> asyncio.Task[Path]:
    """An update under way."""
    updater = Updater(Installation(folder / "current"), home, service, os.environ, print)
    return asyncio.create_task(updater.update(UpdateWishes(wheel, digest_of(wheel), (), 5)))


def held_check(folder: Path, home: Home, wheel: Path) -> HeldCheck:
    begun, gate = folder / "begun", folder / "gate"
    os.mkfifo(begun)
    os.mkfifo(gate)
    new = folder / f"piecework-2.0-{digest_of(wheel)[:12]}"
    (new / "bin" / "piecework").write_text(f"#!/bin/sh\necho >{begun}\nread word <{gate}\n")
    service = FakeService(folder / "current")
    return HeldCheck(service, update(folder, home, wheel, service), begun, gate)


def set_schema(home: Home, schema: int) -> None:
    with closing(sqlite3.connect(home.journal)) as journal:
        journal.execute(f"PRAGMA user_version = {schema}")


async def test_an_update_that_a_person_ends_leaves_the_worker_running(tmp_path: Path) -> None:
    held = held_check(tmp_path, *two_versions(tmp_path))
    await held.ended_by_hand(lambda: None, "ended by hand")
    assert held.service.events == ["stop", "start first"]


class DrainingService(FakeService):
    """Its first drain goes on until the person has ended the update."""

    def __init__(self, link: Path) -> None:
        super().__init__(link)
        self.drains = asyncio.Event()

    async def stop(self) -> None:
        await super().stop()
        if self.events == ["stop"]:
            self.drains.set()
            await asyncio.Event().wait()


async def test_an_update_that_a_person_ends_while_the_worker_drains_starts_it_again(
    tmp_path: Path,
) -> None:
    home, wheel = two_versions(tmp_path)
    service = DrainingService(tmp_path / "current")
    updating = update(tmp_path, home, wheel, service)
    await service.drains.wait()
    updating.cancel()
    with pytest.raises(UpdateRefused, match="ended by hand"):
        await updating
    assert service.events == ["stop", "stop", "start first"]


async def test_a_journal_that_the_check_had_changed_is_not_given_to_the_old_version(
    tmp_path: Path,
) -> None:
    home, wheel = two_versions(tmp_path)
    set_schema(home, 3)
    held = held_check(tmp_path, home, wheel)
    await held.ended_by_hand(lambda: set_schema(home, 4), "has changed the journal")
    assert held.service.events == ["stop"]


WHEEL = Path("/dist/piecework-2.0-py3-none-any.whl")


@pytest.mark.parametrize(
    ("mark", "command"),
    [
        ("pipx_metadata.json", f"pipx install --force '{WHEEL}[worker]'"),
        ("uv-receipt.toml", f"uv tool install --force '{WHEEL}[worker]'"),
    ],
)
def test_an_environment_that_another_tool_keeps_is_updated_by_that_tool(
    tmp_path: Path, mark: str, command: str
) -> None:
    """The way of a link would leave the tool's own program at the old version."""
    environment(tmp_path, "piecework")
    (tmp_path / "piecework" / mark).touch()
    with pytest.raises(UpdateRefused) as refused:
        installation_of(tmp_path / "piecework", None, WHEEL)
    said = str(refused.value)
    tool = command.split(" ", maxsplit=1)[0]
    assert said.startswith(f"{tool} keeps this environment")
    assert "piecework worker drain" in said and command in said and "sha256sum" in said
    assert "ln -s" not in said and "docs/owners/install.md" in said


def test_an_environment_without_a_link_beside_it_is_told_to_make_it(tmp_path: Path) -> None:
    environment(tmp_path, "first")
    with pytest.raises(UpdateRefused) as refused:
        installation_of(tmp_path / "first", None, WHEEL)
    said = str(refused.value)
    assert said.startswith(f"{tmp_path}/current is not a link to an environment. ")
    assert f"ln -s first {tmp_path}/current" in said and f"{tmp_path}/current/bin/piecework" in said
    (tmp_path / "current").symlink_to("first")
    found = installation_of(tmp_path / "first", None, WHEEL)
    assert found.current == tmp_path / "first"


def test_a_link_that_is_named_counts_wherever_the_command_itself_lies(tmp_path: Path) -> None:
    environment(tmp_path, "first")
    (tmp_path / "mine").symlink_to("first")
    kept = tmp_path / "pipx" / "piecework"
    environment(tmp_path / "pipx", "piecework")
    (kept / "pipx_metadata.json").touch()
    assert installation_of(kept, tmp_path / "mine", WHEEL).current == tmp_path / "first"
    with pytest.raises(UpdateRefused, match="is not a link to an environment"):
        installation_of(kept, tmp_path / "nowhere", WHEEL)


def test_a_python_that_is_no_environment_of_its_own_is_named(tmp_path: Path) -> None:
    """As in a container. A link to the whole machine's Python would be no way back."""
    with pytest.raises(UpdateRefused, match=r"not an environment of its own.*start the new image"):
        installation_of(tmp_path / "usr", None, WHEEL)
