"""The shell that types the commands of the documents notices what a reader would notice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import Block, Session, clean_environment

pytestmark = pytest.mark.process


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """A shell in an empty folder."""
    shell = Session(tmp_path, clean_environment(tmp_path, []), {"8380": "18380"})
    yield shell
    shell.stop()


def block(text: str, language: str = "sh") -> Block:
    return Block("a page", 7, language, "run", text)


def test_variables_live_on_from_block_to_block(session: Session) -> None:
    session.run(block("export FIRST='a b'\nSECOND=$(echo c)\n"))
    session.run(block('test "$FIRST $SECOND" = "a b c"\n'))


@pytest.mark.parametrize(
    "text", ["false\n", "false | true\n", "echo $UNKNOWN\n", "true\nnone-such\n"]
)
def test_a_command_that_fails_is_named_with_its_page(session: Session, text: str) -> None:
    with pytest.raises(AssertionError, match="a page:7"):
        session.run(block(text))


def test_a_traceback_is_a_failure_whatever_the_exit_code(session: Session) -> None:
    with pytest.raises(AssertionError, match="Traceback"):
        session.run(block("echo Traceback >&2\n"))


def test_python_that_raises_is_a_failure(session: Session) -> None:
    session.run(block("print(1)\n", "python"))
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        session.run(block("1 / 0\n", "python"))


def test_a_server_has_to_say_that_it_is_ready(session: Session) -> None:
    session.run(block("echo '{\"ready\": true}' &\n"))
    with pytest.raises(AssertionError, match="out of order"):
        session.run(block("echo 'out of order' &\n"))


def test_ports_of_the_page_are_replaced_by_free_ones(session: Session) -> None:
    session.run(block("test 127.0.0.1:8380 = 127.0.0.1:$((18000 + 380))\n"))


def test_continued_lines_are_one_command(session: Session) -> None:
    session.run(block("test a \\\n  = a\n"))


def test_the_reader_has_none_of_our_settings(tmp_path: Path) -> None:
    environment = clean_environment(tmp_path, [tmp_path / "bin"])
    assert environment["HOME"] == str(tmp_path)
    assert environment["PATH"].startswith(str(tmp_path / "bin"))
    assert not [name for name in environment if name.startswith("PIECEWORK_")]
