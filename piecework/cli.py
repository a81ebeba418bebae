"""The command line, assembled lazily: `piecework --help` imports no role, a command only its
own."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, NoReturn

import typer

from piecework import __version__

COMMANDS = {
    "demo": "A whole market on this machine: one paid job, settled.",
    "worker": "Sell canvases: init, check, start, status, drain, settle.",
    "client": "Buy text: deposit, offers, quote, run, receipts, close.",
    "gateway": "An OpenAI-compatible endpoint that pays per canvas.",
    "market": "The index of signed offers, with an explorer page.",
    "chain": "The embedded chain, and deployment to any EVM chain.",
    "models": "The weights: pull a published model, list, verify.",
    "bench": "Measure this machine as the worker would.",
}


def main() -> NoReturn:
    """Entry point of the console command."""
    arguments = sys.argv[1:]
    chosen = arguments[0] if arguments and arguments[0] in COMMANDS else None
    build(chosen)(prog_name="piecework")
    sys.exit(0)


def build(chosen: str | None) -> typer.Typer:
    """The program with the chosen command mounted, or with all of them as names when none is."""
    app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)
    app.callback()(_root)
    for name, summary in COMMANDS.items():
        if name == chosen:
            module = importlib.import_module(f"piecework.commands.{name}")
            app.add_typer(module.app, name=name, help=summary)
        else:
            app.command(name=name, help=summary)(_unmounted)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"piecework {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    """Piecework: pay per canvas for block-diffusion text on anybody's GPU."""


def _unmounted() -> NoReturn:
    """Stands in the list of commands for one that was not chosen."""
    raise SystemExit("piecework: put the command first, before any option")
