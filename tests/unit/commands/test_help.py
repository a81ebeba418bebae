"""The help of every command: whole at 80 columns, with -h, and completed by a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from piecework.cli import COMMANDS, build, parsed


def commands() -> Iterator[str]:
    for name in COMMANDS:
        yield from named(name, parsed(name))


def named(path: str, command: Any) -> Iterator[str]:
    yield path
    for verb, child in getattr(command, "commands", {}).items():
        yield from named(f"{path} {verb}", child)


EVERY = sorted(commands())


def shown(*arguments: str) -> str:
    chosen = arguments[0] if arguments else None
    result = CliRunner(env={"COLUMNS": "80"}).invoke(build(chosen), [*arguments, "-h"])
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("name", EVERY)
def test_the_help_of_every_command_is_whole_at_80_columns(name: str) -> None:
    text = shown(*name.split())
    assert text.startswith("Usage:")
    assert "..." not in text.partition("Commands:")[2]
    assert max(map(len, text.splitlines())) <= 80


def test_no_summary_of_a_role_is_cut() -> None:
    assert "..." not in shown().partition("Commands:")[2]


def test_every_argument_and_option_says_in_a_sentence_what_it_does() -> None:
    bare = []
    for name in EVERY:
        role, *verbs = name.split()
        command = parsed(role)
        for verb in verbs:
            command = command.commands[verb]
        bare += [
            f"{name} {parameter.opts[0]}"
            for parameter in command.params
            if parameter.name != "help" and not (parameter.help or "").endswith(".")
        ]
    assert bare == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("piecework wor", "worker"),
        ("piecework worker st", "status"),
        ("piecework client q", "quote"),
    ],
)
@pytest.mark.process
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


@pytest.mark.parametrize("name", ["demo", "bench"])
def test_a_command_without_verbs_asks_for_none(name: str) -> None:
    assert shown(name).splitlines()[0].endswith(f" {name} [OPTIONS]")


@pytest.mark.parametrize("name", [n for n in EVERY if "--home" in shown(*n.split())])
def test_every_home_says_where_it_is_by_default(name: str) -> None:
    text = " ".join(shown(*name.split()).split())
    # Without --home these two read no home at all.
    assert "$PIECEWORK_HOME/" in text or name in {"bench", "models plan"}
