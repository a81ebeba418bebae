"""Every line that a command prints for a person passes the sanitizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.commands import _common as common

COMMANDS = Path(common.__file__).parent


def test_a_name_that_a_stranger_chose_neither_drives_nor_forges_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    common.say("model     tale\x1b[2J\u202e\nstate     ready")
    assert capsys.readouterr().out == "model     tale[2J state     ready\n"
    common.say("left out: \x9b31mred", err=True)
    assert capsys.readouterr().err == "left out: 31mred\n"


def test_no_command_goes_around_it() -> None:
    around = [f.name for f in COMMANDS.glob("*.py") if "typer.echo" in f.read_text()]
    assert around == ["_common.py"]
