"""Errors of the world become one line; defects of the program stay defects."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import yarl

from piecework import __version__
from piecework.base.errors import PieceworkError, UsageError
from piecework.base.explain import MAX_LINE_CHARACTERS, exit_code, explain, install_hint

ROOT = Path(__file__).resolve().parents[3]


def raised(work: Callable[[], object]) -> Exception:
    """What really comes out, with its traceback."""
    with pytest.raises(Exception) as caught:
        work()
    return caught.value


def os_error(number: int, *files: str | bytes | int) -> OSError:
    return OSError(
        number, os.strerror(number), *files[:1], *((None,) if files[1:] else ()), *files[1:]
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PieceworkError("the market is closed"), "the market is closed"),
        (PieceworkError(), "PieceworkError"),
        (KeyboardInterrupt(), "interrupted"),
        (os_error(errno.ENOENT, "/no/such"), "/no/such: no such file or directory"),
        (os_error(errno.EISDIR, b"/a/\xff"), "/a/: is a directory"),
        (os_error(errno.EXDEV, "/a", "/b"), "/a -> /b: invalid cross-device link"),
        (
            os_error(errno.ENOSPC, "/home/j.db"),
            "/home/j.db: no space left on device. Free some space or choose another folder",
        ),
        (os_error(errno.ENOSPC), "cannot write: no space left on device"),
        (
            os_error(errno.EROFS, "/mnt/a"),
            "/mnt/a: read-only file system. Choose a folder on a volume that can be written",
        ),
        (os_error(errno.EBADF, 7), "file descriptor 7: bad file descriptor"),
        (TimeoutError(), "the other side did not answer in time"),
        (BrokenPipeError(), "the other side closed the connection"),
        (OSError("something odd"), "something odd"),
        (
            socket.gaierror(-2, "Name or service not known"),
            "a host name was not found: name or service not known",
        ),
        (EOFError(), "the input ended before the question was answered"),
    ],
)
def test_an_error_of_the_world_is_one_line(error: BaseException, line: str) -> None:
    assert explain(error) == line


@pytest.mark.parametrize(
    "error",
    [
        ValueError("odd"),
        TypeError(),
        KeyError("x"),
        AssertionError(),
        RuntimeError("broken"),
        io.UnsupportedOperation("not readable"),
        asyncio.IncompleteReadError(b"", 4),
        ModuleNotFoundError("No module named 'piecework.nothing'", name="piecework.nothing"),
        ModuleNotFoundError("No module named 'reqests'", name="reqests"),
        ImportError("cannot import name 'x'", name="torch"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_defect_of_the_program_is_not_explained_away(error: BaseException) -> None:
    assert explain(error) is None


def test_a_file_name_cannot_drive_the_terminal() -> None:
    line = explain(os_error(errno.ENOENT, "/a\x1b]0;owned\x07\n/b"))
    assert line == "/a]0;owned /b: no such file or directory"


def test_the_line_is_one_line_and_bounded() -> None:
    line = explain(PieceworkError("first\nsecond\x1b[2J" + "x" * 10_000))
    assert line is not None
    assert line.startswith("first second[2Jx")
    assert len(line) == MAX_LINE_CHARACTERS


def test_the_owner_of_a_foreign_folder_is_named() -> None:
    # /proc/1 belongs to whoever runs PID 1; the nearest existing folder above is asked.
    error = PermissionError(errno.EACCES, "Permission denied", "/proc/1/no/such/file")
    line = explain(error)
    assert line is not None
    owner = Path("/proc/1").stat().st_uid
    if owner == os.geteuid():
        assert line == "/proc/1/no/such/file: permission denied"
    else:
        assert f"/proc/1 belongs to root (uid {owner}), this program runs as" in line


def test_a_file_that_is_not_text_names_the_byte_and_hides_the_content() -> None:
    line = explain(raised(b"secret\xff".decode))
    assert line == "the input is not UTF-8 text (byte 6: invalid start byte)"


def test_a_character_that_the_output_lacks_is_named() -> None:
    line = explain(raised(lambda: "secret…".encode("ascii")))
    assert line is not None
    assert "ascii has no character U+2026" in line
    assert "secret" not in line


def test_a_lone_surrogate_is_named_as_bad_unicode() -> None:
    line = explain(raised("\udcff".encode))
    assert line == "a text or a file name is not valid Unicode"


def test_a_host_name_that_is_too_long_is_named() -> None:
    line = explain(raised(lambda: ("a" * 80 + ".example").encode("idna")))
    assert line is not None
    assert "a" * 20 not in line


@pytest.mark.parametrize(
    "work",
    [
        lambda: urlsplit("http://[::1"),
        lambda: urlsplit("http://key@host:99999").port,
        lambda: urlsplit("http://key@host:http").port,
        lambda: urlsplit("http://[not-an-address]/key"),
        lambda: yarl.URL("http://key@host:99999"),
        lambda: raise_(aiohttp.InvalidURL("http://key@")),
    ],
)
def test_a_malformed_address_is_named_without_what_it_holds(work: Callable[[], object]) -> None:
    assert explain(raised(work)) == "an address (URL) is malformed"


def raise_(error: Exception) -> None:
    raise error


def test_a_null_character_in_a_path_is_named() -> None:
    error = raised(lambda: Path("a\0b").read_bytes())
    assert explain(error) == "a path or an argument contains a null character"


def test_a_refused_certificate_is_named() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    assert explain(error) == "the other side's certificate was refused: self-signed certificate"


def test_a_program_that_is_not_there_is_named() -> None:
    line = explain(raised(lambda: subprocess.run(["no-such-program-here"], check=True)))
    assert line == "no-such-program-here: no such file or directory"


@pytest.mark.parametrize(
    ("module", "extras", "first"),
    [
        ("torch.cuda", '"worker"', "worker"),
        ("typer", '"cli"', "cli"),
        ("jinja2", '"vllm" or "worker"', "vllm"),
        ("prometheus_client", '"gateway" or "market" or "vllm" or "worker"', "gateway"),
    ],
)
def test_a_missing_package_names_the_extras_that_bring_it(
    module: str, extras: str, first: str
) -> None:
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert explain(error) == (
        f"this needs the package {module.partition('.')[0]}, which is not installed. "
        f"Install it with the extra {extras}: pip install '.[{first}]' in a checkout, "
        f"or pip install 'piecework-{__version__}-py3-none-any.whl[{first}]' from a wheel"
    )


def test_the_hint_names_the_file_that_make_wheel_builds() -> None:
    """hatchling names the wheel so. A guide builds it under the same name."""
    guide = (ROOT / "docs" / "owners" / "install.md").read_text()
    assert f"dist/piecework-{__version__}-py3-none-any.whl" in guide
    assert install_hint(["chain", "worker"]) == (
        "pip install '.[chain,worker]' in a checkout, "
        f"or pip install 'piecework-{__version__}-py3-none-any.whl[chain,worker]' from a wheel"
    )


def test_a_group_gives_the_lines_of_all_leaves_once() -> None:
    inner = ExceptionGroup("inner", [PieceworkError("b"), PieceworkError("a")])
    group = ExceptionGroup("outer", [PieceworkError("a"), inner, TimeoutError()])
    assert explain(group) == "a; b; the other side did not answer in time"


def test_one_unexpected_leaf_makes_the_group_unexpected() -> None:
    assert explain(ExceptionGroup("g", [PieceworkError("a"), KeyError("b")])) is None


def test_a_deep_group_is_unwrapped_without_recursion() -> None:
    error: Exception = PieceworkError("deep")
    for _ in range(5000):
        error = ExceptionGroup("g", [error])
    assert explain(error) == "deep"


def test_the_exit_codes_are_those_of_the_shell() -> None:
    assert exit_code(PieceworkError()) == 1
    assert exit_code(UsageError()) == 2
    assert exit_code(OSError()) == 1
    assert exit_code(KeyboardInterrupt()) == 130
    assert exit_code(BaseExceptionGroup("g", [PieceworkError(), KeyboardInterrupt()])) == 130
