"""The one place where errors of the world become one clear line.

`explain` knows what may go wrong outside the program: files, disks, networks, encodings, missing
packages, malformed addresses. It returns None for everything else. That is a defect of ours, and
the person who reports it needs the traceback.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from piecework import __version__
from piecework.base.errors import PieceworkError
from piecework.base.text import one_line

MAX_LINE_CHARACTERS: Final = 2000
"""An error line longer than this hides what it says."""
MAX_NAME_CHARACTERS: Final = 300
"""A file name, a host name, or the like inside an error line."""
INTERRUPTED: Final = 130
"""128 + SIGINT, as a shell reports it."""

EXTRAS: Final[Mapping[str, frozenset[str]]] = {
    "cli": frozenset({"rich", "structlog", "typer"}),
    "console": frozenset({"textual"}),
    "gateway": frozenset({"backports", "jsonschema", "prometheus_client", "regex"}),
    "market": frozenset({"prometheus_client"}),
    "postgres": frozenset({"asyncpg"}),
    "provenance": frozenset({"c2pa"}),
    "vllm": frozenset(
        {
            "grpc_health",
            "grpc_status",
            "huggingface_hub",
            "jinja2",
            "prometheus_client",
            "psutil",
            "pynvml",
            "tokenizers",
            "tomlkit",
            "transformers",
            "yarl",
        }
    ),
    "worker": frozenset({"PIL", "numpy", "safetensors", "torch", "triton"}),
    "chain": frozenset({"eth", "eth_typing"}),
}
"""Each extra with the modules that it declares. `worker` contains `vllm`, all contain `cli`."""
CONTAINING: Final[Mapping[str, str]] = {"vllm": "worker"}
_WHEEL: Final = f"piecework-{__version__}-py3-none-any.whl"


def explain(error: BaseException) -> str | None:
    """Return one line that says what went wrong, or None if the error is a defect of the program.

    The line carries no control characters and no secret of a URL. A group of errors gives the
    lines of all its leaves; one unexpected leaf makes the group unexpected.
    """
    if isinstance(error, BaseExceptionGroup):
        lines = [explain(leaf) for leaf in leaves(error)]
        if any(line is None for line in lines):
            return None
        text = "; ".join(dict.fromkeys(line for line in lines if line is not None))
    else:
        known = _explained(error)
        if known is None:
            return None
        text = known
    return one_line(text, MAX_LINE_CHARACTERS)


def exit_code(error: BaseException) -> int:
    """Return the exit code for an error that `explain` knows. Of a group it is the highest."""
    if isinstance(error, BaseExceptionGroup):
        return max(exit_code(leaf) for leaf in leaves(error))
    if isinstance(error, PieceworkError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return 1


def install_hint(extras: Sequence[str]) -> str:
    """Return what to type to install extras. Piecework is not on a package index."""
    names = ",".join(extras)
    return (
        f"pip install '.[{names}]' in a checkout, or pip install '{_WHEEL}[{names}]' from a wheel"
    )


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors inside a group of groups, or the error itself."""
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, BaseExceptionGroup):
            waiting[:0] = one.exceptions
        else:
            yield one


def _explained(error: BaseException) -> str | None:
    return next(
        (line for kind, line_of in _KINDS if isinstance(error, kind) and (line := line_of(error))),
        None,
    )


# --- files, disks, networks


def _os_error(error: OSError) -> str | None:
    if isinstance(error, ValueError):  # io.UnsupportedOperation: a wrong call of ours
        return None
    reason = error.strerror or str(error) or _NAMED.get(type(error), type(error).__name__)
    files = [_file_name(f) for f in (error.filename, error.filename2) if f is not None]
    if not files:
        where = "" if error.errno is None else _WITHOUT_FILE.get(error.errno, "")
        return f"{where}{_sentence(reason)}"
    return f"{' -> '.join(files)}: {_sentence(reason)}{_advice(error)}"


_NAMED: Final[Mapping[type[OSError], str]] = {
    TimeoutError: "the other side did not answer in time",
    ConnectionRefusedError: "the connection was refused",
    ConnectionResetError: "the other side closed the connection",
    BrokenPipeError: "the other side closed the connection",
}
_WITHOUT_FILE: Final[Mapping[int, str]] = {
    errno.ENOSPC: "cannot write: ",
    errno.EDQUOT: "cannot write: ",
    errno.EIO: "cannot read or write: ",
}
_ADVICE: Final[Mapping[int, str]] = {
    errno.ENOSPC: ". Free some space or choose another folder",
    errno.EDQUOT: ". Free some space or choose another folder",
    errno.EROFS: ". Choose a folder on a volume that can be written",
    errno.EMFILE: ". Raise the limit of open files (ulimit -n)",
}


def _sentence(reason: str) -> str:
    """The operating system starts its texts with a capital, in the middle of our line."""
    return reason[:1].lower() + reason[1:] if reason[1:2].islower() else reason


def _file_name(name: object) -> str:
    if isinstance(name, int):
        return f"file descriptor {name}"
    text = os.fsdecode(name) if isinstance(name, bytes | str | os.PathLike) else str(name)
    return one_line(text, MAX_NAME_CHARACTERS) or "''"


def _advice(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return _ownership(error.filename)
    return "" if error.errno is None else _ADVICE.get(error.errno, "")


def _ownership(name: object) -> str:
    """Whose the file is, or the nearest folder above it that exists, if it is not ours."""
    if not isinstance(name, str | bytes | os.PathLike):
        return ""
    path = Path(os.path.abspath(os.fsdecode(name)))  # noqa: PTH100  resolve() would need permission
    for place in (path, *path.parents):
        try:
            owner = place.stat().st_uid
        except (OSError, ValueError):
            continue
        us = os.geteuid()
        if owner == us:
            return ""
        shown = one_line(str(place), MAX_NAME_CHARACTERS)
        return f". {shown} belongs to {user_name(owner)}, this program runs as {user_name(us)}"
    return ""


def user_name(uid: int) -> str:
    """Return "name (uid 1000)", or "uid 1000" where the system has no name, as in a container."""
    try:
        import pwd

        return f"{one_line(pwd.getpwuid(uid).pw_name, 64)} (uid {uid})"
    except (ImportError, KeyError):
        return f"uid {uid}"


# --- text, packages, addresses


def _encoding(error: UnicodeError) -> str:
    """What is wrong and where, never the text itself: it may be a secret."""
    if isinstance(error, UnicodeDecodeError):
        name = one_line(error.encoding, 40).upper()
        return f"the input is not {name} text (byte {error.start}: {error.reason})"
    if isinstance(error, UnicodeEncodeError):
        point = ord(error.object[error.start])
        if 0xD800 <= point <= 0xDFFF:
            return "a text or a file name is not valid Unicode"
        name = one_line(error.encoding, 40)
        return (
            f"the encoding {name} has no character U+{point:04X}. "
            "Set PYTHONIOENCODING=utf-8, or a locale with UTF-8"
        )
    return "a host name or a text cannot be encoded"


def _missing_module(error: ModuleNotFoundError) -> str | None:
    top = (error.name or "").partition(".")[0]
    extras = [name for name, modules in EXTRAS.items() if top in modules]
    if not extras:
        return None
    extras += [CONTAINING[name] for name in extras if name in CONTAINING]
    either = " or ".join(f'"{name}"' for name in extras)
    return (
        f"this needs the package {top}, which is not installed. "
        f"Install it with the extra {either}: {install_hint(extras[:1])}"
    )


def _value_error(error: ValueError) -> str | None:
    if _is_bad_url(error):
        return "an address (URL) is malformed"
    if str(error).startswith("embedded null"):
        return "a path or an argument contains a null character"
    return None


def _is_bad_url(error: ValueError) -> bool:
    """aiohttp's and yarl's complaint, or the standard library's. Their texts repeat the URL."""
    # The module is looked up and not imported: without it there is no such error.
    aiohttp = sys.modules.get("aiohttp")
    if aiohttp is not None and isinstance(error, aiohttp.InvalidURL):
        return True
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") in _URL_PARSERS:
            return True
        trace = trace.tb_next
    return False


def _end_of_input(error: EOFError) -> str | None:
    if (
        type(error) is not EOFError
    ):  # a subclass is somebody's protocol, such as asyncio's short read
        return None
    return "the input ended before the question was answered"


_URL_PARSERS: Final = frozenset({"urllib.parse", "yarl._url", "yarl._parse"})
# In order: an error may be of several kinds, and the first that has a line for it wins.
_KINDS: Final[tuple[tuple[type[BaseException], Callable[[Any], str | None]], ...]] = (
    (PieceworkError, lambda error: str(error) or type(error).__name__),
    (KeyboardInterrupt, lambda _: "interrupted"),
    (ModuleNotFoundError, _missing_module),
    (UnicodeError, _encoding),
    (EOFError, _end_of_input),
    (
        ssl.SSLCertVerificationError,
        lambda error: f"the other side's certificate was refused: {error.verify_message}",
    ),
    (
        socket.gaierror,
        lambda error: f"a host name was not found: {_sentence(error.strerror or '')}",
    ),
    (ValueError, _value_error),
    (OSError, _os_error),
)
