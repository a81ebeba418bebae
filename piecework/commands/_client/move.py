"""`piecework client move`: take the file of a market's next deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from piecework.commands import _common as common
from piecework.commands._client.home import Home, Json, existing, open_config


def register(app: typer.Typer) -> None:
    """Add this command to `piecework client`."""
    app.command()(move)


def move(
    file: Annotated[Path, typer.Argument(help="The next deployment file of the market.")],
    *,
    home: Home = None,
    json: Json = False,
) -> None:
    """Take the next deployment file of this market. Channels and balances stay.

    The earlier file is kept. Give it to `client close` and `client dispute` with --deployment, for
    workers that are registered there. A gateway has to be started again.
    """
    from piecework.client.moving import move as moved

    _, config = open_config(home, {})
    done = common.run(moved(existing(home), file, config))
    earlier = None if done.earlier is None else str(done.earlier)
    view = {"registry": done.registry, "earlier": earlier, "new": done.new}
    if json:
        common.print_json(view)
        return
    common.say(f"this client is in the market with registry {done.registry}")
    if done.new:
        common.say(f"the earlier file is {done.earlier}")
