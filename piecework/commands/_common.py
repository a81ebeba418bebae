"""What every command does the same way: errors for a person, running a coroutine, printing
amounts."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from piecework_node.models.store import ModelStore

T = TypeVar("T")
TOKEN_DECIMALS = 6


def fail(message: str, code: int = 1) -> NoReturn:
    """Print one clear line on stderr and leave. Never a traceback for something that was to be
    expected."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; an error that we raise on purpose becomes one line and exit code
    1."""
    from piecework.base.errors import PieceworkError

    try:
        return asyncio.run(coroutine)
    except PieceworkError as error:
        fail(str(error))
    except BaseExceptionGroup as group:
        if group.split(PieceworkError)[1] is not None:
            raise
        fail("; ".join(str(e) for e in _leaves(group)))
    except KeyboardInterrupt:
        fail("interrupted", 130)


def call(work: Callable[[], T]) -> T:
    """The same for a function that waits for nothing."""
    from piecework.base.errors import PieceworkError

    try:
        return work()
    except PieceworkError as error:
        fail(str(error))


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    flat: list[BaseException] = []
    for error in group.exceptions:
        flat += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return flat


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout, at once."""
    print(json.dumps(value), flush=True)


def amount(base_units: int, symbol: str = "tUSDC") -> str:
    """Base units as a person reads them."""
    sign = "-" if base_units < 0 else ""
    whole, rest = divmod(abs(base_units), 1_000_000)
    return f"{sign}{whole:,}.{rest:06d} {symbol}"


def parse_amount(text: str) -> int:
    """Token units as a person writes them ("1.5"), in base units."""
    whole, _, rest = text.partition(".")
    if not (whole or rest) or not (whole + rest).isdecimal() or len(rest) > TOKEN_DECIMALS:
        fail(f"{text!r} is not an amount with at most {TOKEN_DECIMALS} decimals", 2)
    return int(whole or "0") * 1_000_000 + int(rest.ljust(TOKEN_DECIMALS, "0"))


def one_of(option: str, value: str, choices: Sequence[str]) -> str:
    """`value` if it is among the choices; else one line that names them."""
    if value in choices:
        return value
    fail(f"{option} is one of {', '.join(choices)}", 2)


def home(role: str, chosen: Path | None) -> Path:
    """The role's home directory: `--home`, else $PIECEWORK_HOME, else the platform's data
    folder."""
    if chosen is not None:
        return chosen
    from_environment = os.environ.get("PIECEWORK_HOME")
    if from_environment:
        return Path(from_environment)
    import platformdirs

    return platformdirs.user_data_path("piecework") / role


def model_store(chosen: Path | None = None) -> ModelStore:
    """The store of pulled models: `--store`, else $PIECEWORK_MODELS, else the platform's data
    folder."""
    from piecework_node.models.store import ModelStore

    from_environment = os.environ.get("PIECEWORK_MODELS")
    return ModelStore(chosen or (Path(from_environment) if from_environment else None))


def checkpoint(text: str, store: Path | None = None) -> Path:
    """The folder that a person means by a path or the name of a pulled model."""
    from piecework_node.models.store import checkpoint_folder

    return call(lambda: checkpoint_folder(text, model_store(store)))


def ask(option: str, question: str) -> str:
    """Ask for an option that was not given; without a terminal it is missing, and said so."""
    if not sys.stdin.isatty():
        fail(f"{option} is missing", 2)
    import typer

    answer: str = typer.prompt(question)
    return answer


def password(file: Path | None, *, confirm: bool = False) -> str:
    """The key password: $PIECEWORK_PASSWORD, a file, or asked for on the terminal."""
    from_environment = os.environ.get("PIECEWORK_PASSWORD")
    if from_environment is not None:
        return from_environment
    if file is not None:
        try:
            return file.read_text().rstrip("\r\n")
        except OSError as error:
            fail(f"cannot read the password file {file}: {error.strerror}")
    if not sys.stdin.isatty():
        fail("no password: set PIECEWORK_PASSWORD or give --password-file")
    import getpass

    first = getpass.getpass("Key password: ")
    if confirm and getpass.getpass("Again: ") != first:
        fail("the two passwords differ")
    return first
