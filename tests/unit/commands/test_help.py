"""The help of every command: whole at 80 columns, with -h, and completed by a shell."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
import typer
from typer.testing import CliRunner

from piecework.cli import COMMANDS, build


def commands() -> Iterator[tuple[str, click.Command]]:
    for name in COMMANDS:
        app = importlib.import_module(f"piecework.commands.{name}").app
        found = typer.main.get_command(app)
        yield name, found
        for verb, command in getattr(found, "commands", {}).items():
            yield f"{name} {verb}", command


EVERY = dict(commands())


def shown(command: click.Command, width: int = 80) -> str:
    return command.get_help(click.Context(command, info_name="x", terminal_width=width))


@pytest.mark.parametrize("name", EVERY)
def test_no_line_of_the_help_is_cut(name: str) -> None:
    text = shown(EVERY[name])
    assert "..." not in text.partition("Commands:")[2]
    assert max(map(len, text.splitlines())) <= 80


def test_no_summary_of_a_role_is_cut() -> None:
    text = shown(typer.main.get_command(build(None)))
    assert "..." not in text.partition("Commands:")[2]


@pytest.mark.parametrize("name", EVERY)
def test_the_short_help_option_works_everywhere(name: str) -> None:
    role, *verb = name.split()
    result = CliRunner().invoke(build(role), [role, *verb, "-h"])
    assert result.exit_code == 0 and result.output.startswith("Usage:")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("piecework wor", "worker"),
        ("piecework worker st", "status"),
        ("piecework client q", "quote"),
    ],
)
def test_a_shell_completes_roles_and_their_commands(line: str, expected: str) -> None:
    environment = {
        **os.environ,
        "_PIECEWORK_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }
    result = subprocess.run(
        [sys.executable, "-P", "-m", "piecework"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in result.stdout.split(), result.stderr
