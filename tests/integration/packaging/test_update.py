"""`worker update` with real environments and small wheels, offline: forward, refused, and back."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from piecework.chain.deployment import Deployment
from piecework_node.errors import UpdateRefused
from piecework_node.home import Home
from piecework_node.operations.running import drain, is_running
from piecework_node.operations.updating import (
    BackgroundWorker,
    Installation,
    SystemdUnit,
    Updater,
    UpdateWishes,
    make_environment,
    schema_of,
    take_wheel,
)
from piecework_protocol.types import Address, Amount, Seconds
from tests.support.system.commands import piecework
from tests.support.system.wheels import build_library, build_wheel, digest_of, install
from tests.support.system.worker_process import OPERATOR_SECRET, PASSWORD, write_key
from tests.support.waiting import until

pytestmark = pytest.mark.process

ENVIRONMENT = {**os.environ, "PIECEWORK_PASSWORD": PASSWORD}
MARKET = Deployment(31337, Address(b"\x03" * 20), "tUSDC", 6, Amount(10**8), Seconds(7 * 24 * 3600))


@dataclass
class UpdatedPlace:
    """An installation with version 1 running, and a home."""

    folder: Path
    home: Home
    installation: Installation
    service: BackgroundWorker
    said: list[str]

    def wishes(self, wheel: Path, digest: str = "", ready_within_s: float = 60) -> UpdateWishes:
        return UpdateWishes(wheel, digest or digest_of(wheel), (), ready_within_s)

    async def update(self, wheel: Path, digest: str = "", ready_within_s: float = 60) -> Path:
        updater = Updater(self.installation, self.home, self.service, ENVIRONMENT, self.said.append)
        return await updater.update(self.wishes(wheel, digest, ready_within_s))

    def version(self) -> str:
        """Of the worker that was started last."""
        return (self.home.root / "version").read_text()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[UpdatedPlace]:
    home = Home(tmp_path / "home")
    home.create()
    MARKET.save(home.deployment)
    home.config.write_text("# here\n")
    write_key(home.operator, OPERATOR_SECRET)
    first = build_wheel(tmp_path, "1.0")
    install(tmp_path, "first", first, build_library(tmp_path, "alibrary"))
    (tmp_path / "current").symlink_to("first")
    installation = Installation(tmp_path / "current")
    service = BackgroundWorker(installation.link, home, ENVIRONMENT)
    made = UpdatedPlace(tmp_path, home, installation, service, [])
    await service.start()
    await until((home.root / "version").exists, within_s=60)
    yield made
    await service.stop()
    assert await drain(home, 30)


async def test_a_good_version_takes_over_and_the_same_command_again_changes_nothing(
    place: UpdatedPlace,
) -> None:
    wheel = build_wheel(place.folder, "2.0", needs="alibrary")
    now = await place.update(wheel)
    assert now == place.installation.current and now.name.startswith("piecework-2.0-")
    assert place.version() == "2.0" and await is_running(place.home)
    assert place.said == [
        f"{wheel.name} has the given digest",
        f"{now.name} is made",
        "the worker has drained",
        "it passes its check",
        "ready",
    ]
    library = now / "lib" / f"python{_python()}" / "site-packages" / "alibrary" / "__init__.py"
    assert library.stat().st_nlink > 1  # the same bytes, not a second copy
    assert await place.update(wheel) == now
    assert (place.folder / "first" / "bin" / "piecework").exists()


def _python() -> str:
    import sys

    return f"{sys.version_info.major}.{sys.version_info.minor}"


async def test_a_version_that_fails_its_check_or_never_gets_ready_is_left_again(
    place: UpdatedPlace,
) -> None:
    first = place.installation.current
    bad = build_wheel(place.folder, "2.1", check=False)
    with pytest.raises(UpdateRefused, match=r"the new version cannot load it.*first runs again"):
        await place.update(bad)
    assert place.installation.current == first and place.version() == "1.0"
    slow = build_wheel(place.folder, "2.2", ready=False)
    with pytest.raises(UpdateRefused, match=r"not ready within 1 s\. first runs again"):
        await place.update(slow, ready_within_s=1)
    assert place.installation.current == first and place.version() == "1.0"
    assert await is_running(place.home)


async def test_a_version_that_starts_in_a_pause_of_the_owner_stays(place: UpdatedPlace) -> None:
    """It is not ready before the pause is over, and that may take a night."""
    paused = build_wheel(place.folder, "2.3", ready=False, paused=True)
    now = await place.update(paused)
    assert place.installation.current == now and place.version() == "2.3"


async def test_a_journal_that_the_old_version_cannot_read_is_not_given_back_to_it(
    place: UpdatedPlace,
) -> None:
    newer = build_wheel(place.folder, "3.0", schema=4, dies=True)
    with pytest.raises(UpdateRefused, match=r"ended before it was ready.*changed the journal"):
        await place.update(newer)
    assert place.installation.current.name.startswith("piecework-3.0-")
    assert schema_of(place.home.journal) == 4 and not await is_running(place.home)


async def test_a_wheel_of_another_digest_is_refused_and_the_worker_runs_on(
    place: UpdatedPlace,
) -> None:
    wheel = build_wheel(place.folder, "2.0")
    before = sorted(p.name for p in place.folder.iterdir())
    for digest, said in (("00" * 32, "has the digest"), ("00", "64 hexadecimal digits")):
        with pytest.raises(UpdateRefused, match=said):
            await place.update(wheel, digest)
    renamed = wheel.rename(place.folder / "evil-2.0-py3-none-any.whl")
    with pytest.raises(UpdateRefused, match="not a wheel of piecework"):
        await place.update(renamed)
    renamed.rename(wheel)
    assert sorted(p.name for p in place.folder.iterdir()) == before
    assert await is_running(place.home) and place.version() == "1.0"


async def test_packages_that_are_missing_are_named_before_the_worker_is_touched(
    place: UpdatedPlace,
) -> None:
    wheel = build_wheel(place.folder, "2.0", needs="nowhere>=3")
    with pytest.raises(UpdateRefused, match=r"needs other packages: .*nowhere.*--lock"):
        await place.update(wheel)
    assert await is_running(place.home) and place.version() == "1.0"


def test_an_environment_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    install(tmp_path, "first", build_wheel(tmp_path, "1.0"))
    (tmp_path / "current").symlink_to("first")
    installation = Installation(tmp_path / "current")
    built = build_wheel(tmp_path, "2.0")
    (tmp_path / "staged").mkdir()
    wheel = take_wheel(built, digest_of(built), tmp_path / "staged")
    half = tmp_path / f"piecework-2.0-{wheel.digest[:12]}"
    half.mkdir()
    (half / "rubbish").touch()
    made = make_environment(installation, wheel, ())
    assert made == half and not (half / "rubbish").exists() and (half / "bin/piecework").exists()
    installation.remember(installation.current)
    installation.switch(made)
    assert installation.current == made and installation.previous() == tmp_path / "first"
    (tmp_path / ".previous").write_text("../elsewhere")
    assert installation.previous() is None


async def test_a_service_is_stopped_and_started_by_systemctl(tmp_path: Path) -> None:
    """systemd itself is not tried here: what it is asked is."""
    calls = tmp_path / "calls"
    fake = tmp_path / "systemctl"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n[ "$2" != broken ]\n')
    fake.chmod(0o755)
    unit = SystemdUnit("piecework-worker", program=str(fake))
    await unit.stop()
    await unit.start()
    assert calls.read_text() == "stop piecework-worker\nstart piecework-worker\n"
    with pytest.raises(UpdateRefused, match="start broken failed"):
        await SystemdUnit("broken", program=str(fake)).start()


async def test_the_command_says_what_is_missing(tmp_path: Path, place: UpdatedPlace) -> None:
    wheel = build_wheel(tmp_path, "2.0")
    digest, home = digest_of(wheel), str(place.home.root)
    command = ("worker", "update", str(wheel), "--sha256", digest, "--home", home)
    nothing = await piecework(*command)
    assert nothing.code == 2 and "--unit NAME, or --background" in nothing.err
    unlinked = await piecework(
        *command, "--background", "--link", str(tmp_path / "nowhere"), environment=ENVIRONMENT
    )
    assert "is not a link to an environment" in unlinked.line()
    done = await piecework(
        *command, "--background", "--link", str(place.installation.link), environment=ENVIRONMENT
    )
    assert done.code == 0 and "the worker runs in " in done.out, done.err
    assert place.version() == "2.0"
    assert json.loads((place.home.root / "admin.json").read_text())["pid"]
