"""Every line that a command prints for a person passes the sanitizer."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from piecework.commands import _common as common
from piecework.commands._progress import Lines, progress
from piecework_node.models.name import HubFile
from tests.support.system.terminal import FakeTerminal
from tests.support.ways_to_print import ways_to_print

ROOT = Path(__file__).resolve().parents[3]


def test_a_name_that_a_stranger_chose_neither_drives_nor_forges_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    common.say("model     tale\x1b[2J\u202e\nstate     ready")
    assert capsys.readouterr().out == "model     tale[2J state     ready\n"
    common.say("left out: \x9b31mred", err=True)
    assert capsys.readouterr().err == "left out: 31mred\n"


# Whatever prints without `say`, and why it may.
AROUND: dict[str, set[str]] = {
    # `say` itself, and JSON, which has only ASCII.
    "piecework/commands/_common.py": {"echo", "print"},
    # `fail`, which passes the sanitizer, and the streams of the process.
    "piecework/base/entry.py": {"stream"},
    # Its own usage line.
    "piecework/health.py": {"print", "stream"},
    # The version.
    "piecework/cli.py": {"echo"},
    # Live displays. What others wrote is made safe piece by piece.
    "piecework/commands/_progress.py": {"rich"},
    "piecework/commands/_terminal.py": {"rich", "stream"},
    "piecework/commands/_worker/own_test.py": {"rich", "stream"},
    "piecework/commands/_worker/console.py": {"textual"},
    "piecework/commands/demo.py": {"rich"},
    "piecework/demo/screen.py": {"rich"},
    # A line break behind a question.
    "piecework/commands/_questions.py": {"stream"},
    # Tables for a spreadsheet: numbers, addresses and words of ours.
    "piecework/commands/_client/money.py": {"stream"},
    "piecework/commands/_worker/earned.py": {"stream"},
    # Logs, whose processors make every value safe.
    "piecework/commands/_server.py": {"stream"},
    "node/piecework_node/logs.py": {"stream"},
    # The ready line, which is JSON.
    "node/piecework_node/daemon/daemon.py": {"print"},
    # The engine process. Its stderr goes into the worker's log.
    "node/piecework_node/engine/process.py": {"print", "stream"},
}


def test_no_command_goes_around_it() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): ways
        for top in ("piecework", "node/piecework_node")
        for path in (ROOT / top).rglob("*.py")
        if (ways := ways_to_print(path.read_text()))
    }
    assert found == AROUND


@pytest.mark.parametrize(
    ("text", "way"),
    [
        ("print(name)", "print"),
        ("import builtins; builtins.print(name)", "print"),
        ("typer.echo(name)", "echo"),
        ("from click import secho\nsecho(name)", "echo"),
        ("sys.stdout.write(name)", "stream"),
        ("sys.stderr.buffer.write(name)", "stream"),
        ("csv.writer(sys.stdout).writerows(rows)", "stream"),
        ("out = sys.stdout\nout.write(name)", "stream"),
        ("from sys import stdout\nstdout.write(name)", "stream"),
        ("os.write(1, name)", "stream"),
        ("def show():\n    from rich.console import Console", "rich"),
        ("import rich", "rich"),
        ("from textual.app import App", "textual"),
    ],
)
def test_the_rule_sees_every_way_to_print(text: str, way: str) -> None:
    assert ways_to_print(text) == {way}


def test_the_rule_sees_no_way_where_there_is_none() -> None:
    assert not ways_to_print("common.say(name); sys.stdout.isatty(); os.write(tells, b'1')")


def test_an_error_line_is_one_line_and_drives_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        common.fail("no model tale\x1b[2J\u202e\nstate     ready")
    assert capsys.readouterr().err == "error: no model tale[2J state     ready\n"


def test_the_progress_of_a_pull_shows_the_names_of_a_hub_safely(
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = HubFile("tale\x1b[2J\u202e\nverified", 8, "00" * 32)
    Lines().done(file)
    Lines().on_wait("busy\x9b31m", 3)
    assert capsys.readouterr().err == "tale[2J verified: verified\nbusy31m; again in 3 s\n"
    screen = FakeTerminal()
    with contextlib.redirect_stderr(screen), progress() as shown:
        shown.at(file, 4)
        shown.on_wait("busy\x1b]0;title\x07", 3)
    assert "tale[2J verified" in screen.getvalue() and "busy]0;title; again" in screen.getvalue()
    assert "\u202e" not in screen.getvalue() and "\x1b]" not in screen.getvalue()
