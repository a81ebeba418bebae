"""A home of an earlier release moves its sealing keys, killed at every step."""

from __future__ import annotations

from pathlib import Path

from piecework.base.files import SystemDisk
from piecework_node.errors import KeyFileError
from piecework_node.keys.sealing import (
    SealingKeyring,
    SealingKeys,
    WrappingSecrets,
    open_wrapping_secret,
)
from piecework_protocol.sealing import seal
from piecework_protocol.types import PublicKey, Timestamp
from tests.support.clock import FakeClock
from tests.support.node.faults import Killed, KillSwitch
from tests.support.node.harness import DOMAIN, OPERATOR
from tests.support.node.memory_journal import MemoryJournal
from tests.unit.node.test_keys import entropy

ROTATION_S = 10**12
"""No key is made because of its age."""


class MortalDisk(SystemDisk):
    """The machine's disk, under a process that dies between two steps."""

    def __init__(self, switch: KillSwitch) -> None:
        self._switch = switch

    def create(self, path: Path, mode: int) -> int:
        self._switch.point()
        return super().create(path, mode)

    def write(self, descriptor: int, data: bytes) -> int:
        self._switch.point()
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._switch.point()
        super().sync(descriptor)

    def link(self, old: Path, new: Path) -> None:
        self._switch.point()
        super().link(old, new)
        self._switch.point()

    def sync_folder(self, path: Path) -> None:
        self._switch.point()
        super().sync_folder(path)


async def start(home: Path, journal: MemoryJournal, switch: KillSwitch) -> SealingKeyring:
    """Open the keys as a start of the worker does."""
    journal.switch = switch
    own = open_wrapping_secret(
        home / "sealing.json", "password", iterations=2, disk=MortalDisk(switch)
    )
    return await SealingKeyring.load(
        journal,
        WrappingSecrets(own, OPERATOR.secret),
        clock=FakeClock(),
        entropy=entropy(50),
        rotation_s=ROTATION_S,
    )


async def old_journal() -> tuple[MemoryJournal, tuple[PublicKey, ...]]:
    """A journal with three keys that the operator's key wraps."""
    journal, keys = MemoryJournal(DOMAIN), SealingKeys(())
    for age in range(3):
        keys, added = keys.rotated(Timestamp(1_000 + age), OPERATOR.secret, entropy(9 * age))
        await journal.append([added])
    return journal, tuple(key.public for key in await journal.sealing_keys())


async def test_a_kill_at_any_step_leaves_every_key_open(tmp_path: Path) -> None:
    kills = 0
    while True:
        home = tmp_path / str(kills)
        home.mkdir()
        journal, public = await old_journal()
        sealed = [seal(b"text", key, b"context") for key in public]
        try:
            await start(home, journal, KillSwitch(kills + 1))
        except Killed:
            kills += 1
        else:
            break
        keyring = await start(home, journal, KillSwitch())
        assert [keyring.open(one, b"context") for one in sealed] == [b"text"] * 3
        stored = await journal.sealing_keys()
        assert tuple(key.public for key in stored) == public
        own = open_wrapping_secret(home / "sealing.json", "password")
        assert len(SealingKeys.load(stored, WrappingSecrets(own)).secrets) == 3
    assert kills >= 6


async def test_the_operator_key_opens_no_key_after_the_move(tmp_path: Path) -> None:
    journal, _ = await old_journal()
    await start(tmp_path, journal, KillSwitch())
    stored = await journal.sealing_keys()
    try:
        SealingKeys.load(stored, WrappingSecrets(OPERATOR.secret))
    except KeyFileError:
        return
    raise AssertionError("the operator's key still wraps the sealing keys")


async def test_a_second_start_moves_nothing(tmp_path: Path) -> None:
    journal, _ = await old_journal()
    await start(tmp_path, journal, KillSwitch())
    commits = journal.commits
    await start(tmp_path, journal, KillSwitch())
    assert journal.commits == commits
