"""`piecework worker update`: another version beside the one that runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from piecework.commands import _common as common
from piecework.commands._worker.changes import HomeOption, place_of

if TYPE_CHECKING:
    from piecework_node.home import Home
    from piecework_node.operations.updating import Installation, WorkerService


def register(app: typer.Typer) -> None:
    """Add this command to `piecework worker`."""
    app.command()(update)


def update(
    wheel: Annotated[Path, typer.Argument(help="Wheel of piecework.")],
    *,
    sha256: Annotated[str, typer.Option("--sha256", help="Its digest, from a place you trust.")],
    unit: Annotated[
        str, typer.Option(help="systemd unit that runs the worker, such as piecework-worker.")
    ] = "",
    background: Annotated[
        bool, typer.Option("--background", help="Start the worker from here, without systemd.")
    ] = False,
    lock: Annotated[
        list[Path] | None,
        typer.Option(
            help="Lock file of the new version's packages; repeatable. Default: those of now."
        ),
    ] = None,
    link: Annotated[
        Path | None, typer.Option(help="Link that the service starts. Default: ../current.")
    ] = None,
    ready_within: Annotated[
        float,
        typer.Option(
            min=1,
            max=7200,
            help="Seconds that the new version has to get ready. Then the old one is back.",
        ),
    ] = 900.0,
    home: HomeOption = None,
    password_file: Annotated[
        Path | None, typer.Option(help="File with the key's password.")
    ] = None,
) -> None:
    """Switch to another version, and back if it fails.

    The worker drains. If the new version fails its check or is not ready in time, the old one runs
    again and this ends with exit code 1.
    """
    import os

    from piecework_node.operations.updating import Updater, UpdateWishes

    if bool(unit) == background:
        common.fail("name what runs the worker: --unit NAME, or --background", 2)
    place = place_of(home)
    installation = _installation(link, wheel)
    environment = {**os.environ, "PIECEWORK_PASSWORD": common.password(password_file)}
    service = _service(unit, installation, place, environment)
    wishes = UpdateWishes(wheel, sha256, tuple(lock or ()), ready_within)
    updater = Updater(installation, place, service, environment, common.say)
    now = common.run(updater.update(wishes))
    common.say(f"the worker runs in {now}")


def _installation(link: Path | None, wheel: Path) -> Installation:
    import sys

    from piecework_node.operations.updating import installation_of

    return common.guard(lambda: installation_of(Path(sys.prefix).resolve(), link, wheel))


def _service(
    unit: str, installation: Installation, place: Home, environment: dict[str, str]
) -> WorkerService:
    from piecework_node.operations.updating import BackgroundWorker, SystemdUnit

    if unit:
        return SystemdUnit(unit)
    return BackgroundWorker(installation.link, place, environment)
