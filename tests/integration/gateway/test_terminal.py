"""A job on a terminal, drawn into a string."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from piecework.base.errors import PieceworkError
from piecework.commands._terminal import LiveDisplay, PlainDisplay, choose
from piecework_protocol.types import to_hex
from tests.support.chain.fake_chain import FakeChain
from tests.support.client.client_side import MONEY, PAYER, FakeClock, ask, open_client
from tests.support.client.fake_worker import STORY, FakeWorker, Script
from tests.support.system.terminal import FakeTerminal

WHOLE = " ".join(STORY)


def money(units: int) -> str:
    return f"{units} units"


async def test_the_live_canvas_ends_as_the_whole_text_with_its_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = FakeTerminal()
    monkeypatch.setenv("COLUMNS", "200")
    chain, clock = FakeChain(), FakeClock()
    chain.deposit(PAYER.address, MONEY)
    hostile = Script(story=(*STORY[:-1], "\x1b]0;owned\x07."))
    async with (
        FakeWorker(chain, clock, script=hostile) as worker,
        open_client(tmp_path, chain, clock) as client,
    ):
        with contextlib.redirect_stdout(screen):
            display = choose(money, quiet=False)
            assert isinstance(display, LiveDisplay)
            progress = await display.show(client.run(ask(drafts=True)))
    assert progress.ended is not None
    shown = screen.getvalue()
    assert f"{worker.paid()} units paid" in shown
    assert "The fox slept well that night" in shown
    assert "\x1b]0;owned" not in shown


async def test_plain_output_is_the_text_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain, clock = FakeChain(), FakeClock()
    chain.deposit(PAYER.address, MONEY)
    script = Script(drop_after=[1])
    async with (
        FakeWorker(chain, clock, script=script),
        open_client(tmp_path, chain, clock) as client,
    ):
        await PlainDisplay(money).show(client.run(ask()))
    output = capsys.readouterr()
    assert output.out == WHOLE + "\n"
    assert "connection lost" in output.err


async def test_plain_output_lets_no_worker_drive_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain, clock = FakeChain(), FakeClock()
    chain.deposit(PAYER.address, MONEY)
    hostile = Script(story=(*STORY[:-1], "\x1b]0;owned\x07\u202e\x9b", "é 漢"))
    async with (
        FakeWorker(chain, clock, script=hostile),
        open_client(tmp_path, chain, clock) as client,
    ):
        await PlainDisplay(money).show(client.run(ask()))
    output = capsys.readouterr()
    assert "é 漢" in output.out
    assert not any(c in output.out + output.err for c in "\x1b\x07\u202e\x9b")


async def test_a_job_that_stops_early_leaves_what_was_paid_for_on_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = FakeTerminal()
    monkeypatch.setenv("COLUMNS", "200")
    chain, clock = FakeChain(), FakeClock()
    chain.deposit(PAYER.address, MONEY)
    async with (
        FakeWorker(chain, clock, script=Script(fail_at=1)) as worker,
        open_client(tmp_path, chain, clock) as client,
    ):
        with contextlib.redirect_stdout(screen), pytest.raises(PieceworkError):
            await LiveDisplay(money).show(client.run(ask()))
    (job,) = worker.jobs
    left = screen.getvalue().rpartition("\x1b[2K")[2]
    assert STORY[0] in left
    assert f"client receipts --job {to_hex(job)}" in left


async def test_a_job_that_no_worker_took_leaves_nothing_but_its_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain, clock = FakeChain(), FakeClock()
    chain.deposit(PAYER.address, MONEY)
    async with open_client(tmp_path, chain, clock) as client:
        with pytest.raises(PieceworkError):
            await PlainDisplay(money).show(client.run(ask()))
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "")
