"""A worker that leaves its market or changes its key, in processes that kill themselves.

The processes are forked from one that has imported everything, so that a death at each of many
points takes little. `Points.at` counts the moments at which a process could die: before and after
each step, and between a transaction and its block.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from piecework.chain.deployment import Deployment
from piecework.chain.keystore import open_keystore
from piecework.chain.nodes.rpc import HttpRpc
from piecework.chain.reading.reader import ChainReader
from piecework_node import config
from piecework_node.home import Home
from piecework_node.keys.operator import load_operator
from piecework_node.operations.leaving import Leaver, LeaveReport
from piecework_node.operations.owning import OwnerHands
from piecework_node.operations.rotation import Passwords, Rotation
from piecework_protocol.types import Address, Timestamp
from tests.support.system.worker_process import PASSWORD, POLL_S

SENDING: Final = "eth_sendRawTransaction"
LIGHT: Final = 2
"""scrypt's N of a key that opens fast."""
_PRELOADED: Final = ("pytest", "tests.support.node.leaving")
"""The test program too: a child begins by importing what started its parent."""


class DyingPoints:
    """Dies by SIGKILL at one of the points. -1: at none."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, _: str = "") -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1


class DyingRpc:
    """A node behind points: the process may die when a transaction was sent and is not mined."""

    def __init__(self, inner: HttpRpc, points: DyingPoints) -> None:
        self._inner, self._points = inner, points

    async def call(self, method: str, *params: Any) -> Any:
        answer = await self._inner.call(method, *params)
        if method == SENDING:
            self._points()
        return answer

    async def close(self) -> None:
        await self._inner.close()


@dataclass(frozen=True, slots=True)
class KeysAndChain:
    """Where the keys are, and the chain."""

    home: Path
    owner: Path
    url: str


async def _with_chain(
    where: KeysAndChain, points: DyingPoints, work: Callable[[Home, OwnerHands], Awaitable[Any]]
) -> Any:
    home = Home(where.home)
    deployment = Deployment.load(home.deployment)
    rpc = DyingRpc(HttpRpc(where.url), points)
    async with await ChainReader.connect(deployment, rpc=rpc) as reader:
        owner = open_keystore(where.owner, PASSWORD)
        return await work(home, OwnerHands(reader, [owner], poll_s=POLL_S))


async def leave(where: KeysAndChain, at: int = -1) -> LeaveReport:
    """`piecework worker leave`, dying at a point."""
    points = DyingPoints(at)

    async def work(home: Home, hands: OwnerHands) -> LeaveReport:
        settings = config.load(home.root, environment={})
        operator = load_operator(home.operator, PASSWORD)
        leaver = Leaver(home, settings, operator, hands, watch=points, poll_s=POLL_S)
        return await leaver.run()

    report: LeaveReport = await _with_chain(where, points, work)
    return report


async def rotate(where: KeysAndChain, old: Address, at: int = -1) -> Any:
    """`piecework worker rotate-key --replace OLD`, dying at a point."""
    points = DyingPoints(at)

    async def work(home: Home, hands: OwnerHands) -> Any:
        settings = config.load(home.root, environment={})
        rotation = Rotation(
            home,
            settings,
            Passwords(PASSWORD, PASSWORD),
            hands,
            watch=points,
            poll_s=POLL_S,
            key_cost=LIGHT,
        )
        return await rotation.run(old, Timestamp(int(time.time())))

    return await _with_chain(where, points, work)


def leave_here(where: KeysAndChain, at: int) -> None:
    """The whole process of one attempt."""
    asyncio.run(leave(where, at))


def rotate_here(where: KeysAndChain, old: Address, at: int) -> None:
    """The whole process of one attempt."""
    asyncio.run(rotate(where, old, at))


async def killed(target: Callable[..., None], *arguments: Any) -> bool:
    """Run one attempt in a process. Whether it died by its own SIGKILL, and not otherwise."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    process = context.Process(target=target, args=arguments, daemon=True)
    await asyncio.to_thread(process.start)
    await asyncio.to_thread(process.join)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0
