"""What every `piecework client` command shares: its home, its password, opening the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piecework.base.text import one_line
from piecework.commands import _common as common

if TYPE_CHECKING:
    from piecework.base.amounts import Token
    from piecework.client.config import ClientConfig, ClientHome
    from piecework.client.sdk import PieceworkClient

Home = Annotated[Path | None, common.home_option("client")]
PasswordFile = Annotated[Path | None, typer.Option(help="File with the key's password.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Earlier = Annotated[
    Path | None,
    typer.Option("--deployment", help="An earlier deployment file of this market (client move)."),
]

Work = Callable[["PieceworkClient"], Awaitable[Any]]


def open_config(home: Path | None, flags: dict[str, Any]) -> tuple[Path, ClientConfig]:
    """The home and its settings with flags applied. One clear line if they cannot be used."""
    from piecework.client.config import load_config

    files = existing(home)
    return files.path, common.guard(lambda: load_config(files.config, flags))


def market_token_of(home: Path | None) -> Token:
    """What the amounts of this client's market are counted in."""
    return common.market_token(existing(home).deployment)


def print_amounts(values: dict[str, Any], token: Token) -> None:
    common.print_json({**values, "token": common.token_json(token)})


def existing(home: Path | None) -> ClientHome:
    """The files of a home that `client init` made. One clear line when there is none."""
    from piecework.client.config import ClientHome

    files = ClientHome(common.home("client", home))
    common.guard(files.check)
    return files


def with_client(
    home: Path | None,
    password_file: Path | None,
    work: Work,
    *,
    earlier: Path | None = None,
    **flags: Any,
) -> Any:
    """Open the client and do some work. earlier: another deployment file than the home's."""
    folder, config = open_config(home, flags)
    secret = common.password(password_file)

    async def whole() -> Any:
        from piecework.client.config import ClientHome
        from piecework.client.sdk import PieceworkClient

        files = ClientHome(folder, earlier)
        async with await PieceworkClient.open(files, config, password=secret) as client:
            return await work(client)

    return common.run(whole())


def safe(text: str) -> str:
    """A stranger's words in one line of a terminal."""
    return one_line(text, 500)
