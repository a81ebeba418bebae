"""A program's end, seen from its parent: streams that are full, closed or gone, and every error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]
HEAD = """
import asyncio, os, sys
from piecework.base.entry import fail, guard, run
from piecework.base.errors import PieceworkError, UsageError
"""


def start(body: str, **streams: Any) -> subprocess.Popen[bytes]:
    changed = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "", **streams.pop("environment", {})}
    child: subprocess.Popen[bytes] = subprocess.Popen(
        [sys.executable, "-P", "-c", HEAD + body],
        env={**os.environ, **changed},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
    )
    return child


def ended(body: str, **streams: Any) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a program."""
    with start(body, **streams) as child:
        out, err = child.communicate(timeout=60)
        return child.returncode, (out or b"").decode(), (err or b"").decode()


def test_what_the_work_returns_comes_back() -> None:
    code, out, err = ended("print(guard(lambda: 5) + 1)")
    assert (code, out, err) == (0, "6\n", "")


def test_what_a_coroutine_returns_comes_back() -> None:
    code, out, err = ended("print(run(asyncio.sleep(0, 7)))")
    assert (code, out, err) == (0, "7\n", "")


@pytest.mark.parametrize(
    ("work", "code", "line"),
    [
        ("raise PieceworkError('no worker')", 1, "error: no worker\n"),
        ("raise UsageError('no such flag')", 2, "error: no such flag\n"),
        ("open('/no/such')", 1, "error: /no/such: no such file or directory\n"),
        ("raise KeyboardInterrupt", 130, "error: interrupted\n"),
        (
            "raise ExceptionGroup('g', [PieceworkError('a'), PieceworkError('b')])",
            1,
            "error: a; b\n",
        ),
        ("fail('told', 3)", 3, "error: told\n"),
        ("sys.exit(4)", 4, ""),
        ("sys.exit('words')", 1, "words\n"),
        ("raise PieceworkError('\\x1b[2J\\udcff…')", 1, "error: [2J…\n"),
        (
            "os.write(os.open('/dev/full', 1), b'x')",
            1,
            "error: cannot write: no space left on device\n",
        ),
    ],
)
def test_an_expected_end_is_one_line_and_a_code(work: str, code: int, line: str) -> None:
    for call in ("guard(work)", "run(later())"):
        body = f"def work():\n    {work}\nasync def later():\n    work()\n{call}"
        assert ended(body, environment={"PYTHONUTF8": "1"}) == (code, "", line)


def test_a_defect_is_still_a_traceback() -> None:
    code, _, err = ended("guard(lambda: {}['missing'])")
    assert code == 1
    assert err.startswith("Traceback") and "KeyError: 'missing'" in err


def test_a_group_with_a_defect_is_still_a_traceback() -> None:
    code, _, err = ended(
        "def work():\n"
        "    raise ExceptionGroup('g', [PieceworkError('a'), KeyError('b')])\n"
        "guard(work)"
    )
    assert code == 1
    assert "Traceback" in err and "KeyError: 'b'" in err and "PieceworkError: a" in err


PRINTING = {
    "one line that stays in the buffer": "print('x')",
    "more than any buffer": "print('x' * 10_000_000)",
    "many lines": "[print('x' * 100) for _ in range(100_000)]",
    "a flush of its own": "print('x', flush=True)",
    "bytes": "sys.stdout.buffer.write(b'x' * 10_000_000)",
    "an exit with success": "print('x'); sys.exit(0)",
}


@pytest.mark.parametrize("printing", PRINTING.values(), ids=PRINTING.keys())
@pytest.mark.parametrize("call", ["guard(work)", "run(later())"])
def test_a_reader_that_went_away_ends_the_program_quietly(printing: str, call: str) -> None:
    body = f"def work():\n    {printing}\nasync def later():\n    work()\n"
    reading, writing = os.pipe()
    os.close(reading)
    with start(body + call, stdout=writing) as child:
        os.close(writing)
        _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (141, b"")


@pytest.mark.parametrize("printing", PRINTING.values(), ids=PRINTING.keys())
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_output_is_one_line(printing: str, unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        code, _, err = ended(
            f"def work():\n    {printing}\nguard(work)",
            stdout=full,
            environment={"PYTHONUNBUFFERED": unbuffered},
        )
    assert (code, err) == (1, "error: cannot write: no space left on device\n")


def test_an_error_is_told_although_the_reader_of_stdout_went_away() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    body = "def work():\n    print('x')\n    raise PieceworkError('no worker')\nguard(work)"
    with start(body, stdout=writing) as child:
        os.close(writing)
        _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (1, b"error: no worker\n")


def test_a_defect_with_a_full_output_is_one_traceback_and_nothing_else() -> None:
    with Path("/dev/full").open("wb") as full:
        code, _, err = ended(
            "def work():\n    print('x')\n    {}['missing']\nguard(work)", stdout=full
        )
    assert code == 1
    assert "KeyError" in err and "Exception ignored" not in err


def test_both_streams_gone_keep_the_code() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    body = "def work():\n    raise UsageError('x' * 100_000)\nguard(work)"
    with start(body, stdout=writing, stderr=writing) as child:
        os.close(writing)
        child.communicate(timeout=60)
    assert child.returncode == 2


def test_a_broken_connection_is_not_taken_for_a_broken_output() -> None:
    body = (
        "import socket\n"
        "def work():\n"
        "    a, b = socket.socketpair()\n"
        "    b.close()\n"
        "    a.send(b'x')\n"
        "guard(work)"
    )
    assert ended(body) == (1, "", "error: broken pipe\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_a_program_without_its_streams_keeps_their_numbers(closed: str, tmp_path: Path) -> None:
    """The file that it opens must not become the stdout of its children."""
    file = tmp_path / "journal"
    body = HEAD + (
        "import subprocess\n"
        "def work():\n"
        f"    with open({str(file)!r}, 'w') as journal:\n"
        "        assert journal.fileno() > 2\n"
        "        print('lost'); print('lost', file=sys.stderr); sys.stdin.read()\n"
        "        subprocess.run(['sh', '-c', 'echo child; echo child >&2'], check=True)\n"
        "        journal.write('kept')\n"
        "guard(work)\n"
    )
    program = tmp_path / "program.py"
    program.write_text(body)
    command = f"exec {sys.executable} -P {program} {closed}"
    done = subprocess.run(
        ["sh", "-c", command if "<" in closed else f"{command} </dev/null"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert file.read_text() == "kept"


def test_an_output_that_is_not_utf8_gets_question_marks() -> None:
    code, out, err = ended(
        "guard(lambda: print('5 € … é'))",
        environment={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert (code, out, err) == (0, "5 ? ? ?\n", "")


def test_a_locale_without_utf8_does_not_break_an_error_line() -> None:
    code, _, err = ended(
        "def work():\n    raise PieceworkError('5 €')\nguard(work)",
        environment={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert (code, err) == (1, "error: 5 ?\n")


def test_on_windows_the_command_says_that_it_does_not_run_there() -> None:
    code, out, err = ended("from piecework.__main__ import main\nmain('win32')")
    assert (code, out) == (2, "") and err.startswith("error: Piecework does not run on Windows")
