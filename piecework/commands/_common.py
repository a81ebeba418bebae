"""What every command does the same way: errors for a person, running a coroutine, printing
amounts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from piecework.base.entry import MAX_LINE_CHARACTERS, ExitError, fail, guard, run
from piecework.base.homes import default_home
from piecework.base.text import printable
from piecework.commands._questions import MAX_PASSWORD_BYTES, agrees, ask, password

if TYPE_CHECKING:
    from piecework.base.amounts import Token
    from piecework_node.models.store import ModelStore
    from piecework_protocol.types import Address

__all__ = [
    "MAX_PASSWORD_BYTES",
    "ExitError",
    "address",
    "agrees",
    "ask",
    "checkpoint",
    "fail",
    "group",
    "guard",
    "home",
    "home_option",
    "market_token",
    "model_store",
    "no_options_before",
    "one_of",
    "password",
    "print_json",
    "run",
    "say",
    "single",
    "some_units",
    "token_json",
    "units",
    "written",
]

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


def group() -> typer.Typer:
    """A command that has commands, such as `piecework worker`."""
    return typer.Typer(no_args_is_help=True, rich_markup_mode=None, context_settings=HELP_OPTIONS)


def single(metavar: str = "") -> typer.Typer:
    """A command that does its work without another word, such as `piecework demo`.

    `metavar` is what its usage shows for commands of its own, if it has some.
    """
    return typer.Typer(
        invoke_without_command=True,
        rich_markup_mode=None,
        context_settings=HELP_OPTIONS,
        subcommand_metavar=metavar,
    )


def no_options_before(context: typer.Context) -> None:
    """Refuse options in front of a command that would not see them."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = "--" + name.replace("_", "-")
            fail(f"write {option} after the command {context.invoked_subcommand}", 2)


def home_option(role: str) -> Any:
    """The option that chooses a role's folder."""
    return typer.Option(
        "--home",
        help=f"The {role}'s folder. Default: $PIECEWORK_HOME/{role}, else a folder for user data.",
    )


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on stdout, at once."""
    print(json.dumps(value), flush=True)


def say(line: str, *, err: bool = False) -> None:
    """One line for a person. What a stranger wrote in it cannot drive or deceive the terminal."""
    typer.echo(printable(line, lines=False, limit=MAX_LINE_CHARACTERS), err=err)


def market_token(deployment: Path) -> Token:
    """What the amounts of a market are counted in; one clear line when its file is unusable."""
    from piecework.chain.deployment import Deployment

    return guard(lambda: Deployment.load(deployment).payment_token)


def units(token: Token, text: str) -> int:
    """Base units of an amount that a person wrote; one clear line when it is malformed."""
    return guard(lambda: token.parse(text))


def written(token: Token, text: str) -> str:
    """An amount that a person wrote, as settings have it: with the symbol of its token."""
    return token.write(units(token, text))


def some_units(token: Token, text: str) -> int:
    """As `units`, for money that moves: nothing is not an amount to move."""
    found = units(token, text)
    if found == 0:
        fail(f"the amount is 0 {token.symbol}. Give one that is more", 2)
    return found


def token_json(token: Token) -> dict[str, Any]:
    """A token as every command with amounts prints it in JSON."""
    address = None if token.address is None else "0x" + token.address.hex()
    return {"address": address, "symbol": token.symbol, "decimals": token.decimals}


def address(option: str, text: str) -> Address:
    """An address that a person wrote; one clear line when it is malformed."""
    from piecework_protocol.types import parse_address

    try:
        return parse_address(text)
    except ValueError as error:
        fail(f"{option}: {error}", 2)


def one_of(option: str, value: str, choices: Sequence[str]) -> str:
    """`value` if it is among the choices; else one line that names them."""
    if value not in choices:
        fail(f"{option} is one of {', '.join(choices)}", 2)
    return value


def home(role: str, chosen: Path | None) -> Path:
    """The role's home: `--home`, else $PIECEWORK_HOME/ROLE, else in the platform's data folder."""
    return default_home(role) if chosen is None else chosen


def model_store(chosen: Path | None = None) -> ModelStore:
    """The store of pulled models: `--store`, else $PIECEWORK_MODELS, else the platform's data
    folder."""
    from piecework_node.models.store import ModelStore

    from_environment = os.environ.get("PIECEWORK_MODELS")
    return ModelStore(chosen or (Path(from_environment) if from_environment else None))


def checkpoint(text: str, store: Path | None = None) -> Path:
    """The folder that a person means by a path or the name of a pulled model."""
    from piecework_node.models.store import checkpoint_folder

    return guard(lambda: checkpoint_folder(text, model_store(store)))
