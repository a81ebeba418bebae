"""`worker try` at a real daemon: the owner sees its engine write, and no client is near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piecework.chain.dev.embedded import EmbeddedChain
from piecework_node.console.model import Snapshot
from piecework_node.daemon.admin import ask_daemon
from tests.support.chain.chains import deployed
from tests.support.system.commands import piecework
from tests.support.system.on_terminal import CTRL_C, on_terminal
from tests.support.system.worker_process import POLL_STATUS_S, WorkerProcess
from tests.support.waiting import until

pytestmark = pytest.mark.process


async def test_the_owner_tries_the_engine_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    async with EmbeddedChain() as chain, deployed(chain) as market:
        worker = await WorkerProcess.register(
            tmp_path / "worker", market.deployment, pace_s=1.0, rpc_url=chain.url
        )
        root = worker.home.root
        assert (await worker.start())["ready"] is True
        try:
            at_home = ("--home", str(root))
            test = (await piecework("worker", "try", "a fox", "--json", *at_home)).json()
            assert (test["state"], test["prompt"]) == ("done", "a fox")
            assert test["tokens"] and test["text"] and test["seconds"]
            shown = Snapshot.from_json(await ask_daemon(root, "GET", "/console/data"))
            assert shown.test is not None and shown.test.text == test["text"]
            assert (await ask_daemon(root, "GET", "/status"))["earnings"]["jobs"] == {}
            long = ("worker", "try", "an owl", "--max-tokens", "128", *at_home)
            code, seen = await on_terminal(*long, answers=[("step", CTRL_C)])
            assert (code, "Traceback" in seen) == (130, False), seen

            async def stopped() -> bool:
                last: dict[str, Any] = await ask_daemon(root, "GET", "/test")
                return bool((last["prompt"], last["state"]) == ("an owl", "stopped"))

            await until(stopped, within_s=30, poll_s=POLL_STATUS_S)
            too_long = ("worker", "try", "a", "--max-tokens", "1000000", *at_home)
            assert "leaves room for" in (await piecework(*too_long)).line()
        finally:
            assert await worker.drain() == 0
