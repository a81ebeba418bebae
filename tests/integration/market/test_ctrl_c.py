"""One Ctrl-C at a question ends the command, wherever it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from piecework.chain.dev.embedded import EmbeddedChain
from piecework.demo.market import free_port
from tests.integration.market.test_join import OWNER, PAYOUT
from tests.support.market.joining import published_market
from tests.support.system.on_terminal import CTRL_C, CTRL_D, on_terminal

pytestmark = pytest.mark.process


async def ends_at_once(line: Sequence[str], *answers: tuple[str, str], last: str) -> None:
    """Answer the first questions, and press Ctrl-C once at the last one."""
    code, shown = await on_terminal(*line, answers=[*answers, (last, CTRL_C)])
    assert code == 130, shown
    assert shown.endswith("\r\nerror: interrupted\r\n"), shown
    assert "Traceback" not in shown


async def test_one_ctrl_c_ends_a_command_at_each_of_its_questions(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    home = tmp_path / "worker"
    async with published_market(tmp_path, embedded_chain) as found:
        public = found.folder
        bind = ("--bind", f"127.0.0.1:{free_port()}", "--owner", OWNER)
        line = ("worker", "join", found.url, "--home", str(home), *bind)
        told = [
            ("Is it the same", "y"),
            ("Cold address", PAYOUT),
            ("Key password", "secret"),
            ("Again", "secret"),
        ]
        await ends_at_once(line, last="Is it the same")
        await ends_at_once(line, told[0], last="Cold address")
        await ends_at_once(line, *told[1:2], last="Key password")
        await ends_at_once(line, *told[1:3], last="Again")
        await ends_at_once(line, *told[1:4], last="Register all the same")
        payout = ("worker", "payout", OWNER, "--home", str(home))
        await ends_at_once(payout, last="Send all earnings")
        rotate = ("worker", "rotate-key", "--home", str(home))
        await ends_at_once(rotate, last="Replace the key")
        file, key = public / "deployment.json", public / "key.json"
        where = ("--deployment", str(file), "--key-file", str(key))
        await ends_at_once(("committee", "submit", "no.json", *where), last="Key password")


async def test_the_end_of_the_input_is_said_at_each_kind_of_question(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    async with published_market(tmp_path, embedded_chain) as found:
        public = found.folder
        join = ("worker", "join", found.url, "--home", str(tmp_path / "worker"))
        file, key = public / "deployment.json", public / "key.json"
        where = ("--deployment", str(file), "--key-file", str(key))
        for line, question in (
            (join, "Is it the same"),
            (("committee", "submit", "no.json", *where), "Key password"),
        ):
            code, shown = await on_terminal(*line, answers=[(question, CTRL_D)])
            assert code == 1, shown
            assert shown.endswith("error: the input ended before the question was answered\r\n")
