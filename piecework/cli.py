"""The command line, assembled lazily: `piecework --help` imports no role, a command only its
own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Annotated, Any, NoReturn

import typer

from piecework import __version__
from piecework.base.entry import guard
from piecework.base.environment import check_names

COMMANDS = {
    "demo": "Run a whole market on this machine, with one paid job.",
    "worker": "Sell canvases from this machine's GPU.",
    "client": "Buy text, check receipts, move your money.",
    "gateway": "Serve an OpenAI-compatible endpoint that pays per canvas.",
    "market": "Run an index of signed offers with an explorer page.",
    "verify-reply": "Check a saved answer or an evidence file, offline.",
    "provenance": "Write and check C2PA credentials of answers.",
    "relay": "Run a relay for workers that have no public port.",
    "signer": "Hold a worker's operator key apart, with limits.",
    "committee": "Judge disputed steps, as a member of a market's committee.",
    "chain": "Deploy the contracts, or run a development chain.",
    "models": "Plan, download and verify model weights.",
    "bench": "Measure this machine as the worker would.",
}
_COMPLETION = "_PIECEWORK_COMPLETE"
"""Set by a shell that completes a line."""


def main() -> NoReturn:
    """Entry point of the console command."""
    guard(_run)
    sys.exit(0)


def _run() -> None:
    if _COMPLETION not in os.environ:  # an error would stand in the line that somebody types
        check_names(os.environ)
    build(_chosen(sys.argv[1:], os.environ))(prog_name="piecework")


def _chosen(arguments: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """The command that the line names. While a shell completes, its line is in the environment."""
    if _COMPLETION in environment:
        line = environment.get("_TYPER_COMPLETE_ARGS") or environment.get("COMP_WORDS", "")
        arguments = line.split()[1:]
    return arguments[0] if arguments and arguments[0] in COMMANDS else None


def build(chosen: str | None) -> typer.Typer:
    """The program with the chosen command mounted, or with all of them as names when none is."""
    app = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name, summary in COMMANDS.items():
        if name == chosen:
            module = module_of(name)
            if hasattr(module, "command"):
                app.command(name=name)(module.command)
            else:
                app.add_typer(module.app, name=name, help=summary)
        else:
            app.command(name=name, help=summary)(_unmounted)
    return app


def module_of(name: str) -> ModuleType:
    """Import a command's module. It has an `app` with commands of its own, or a `command`.

    A group of typer takes no option behind an argument, so a command that has one is not a group.
    """
    return importlib.import_module(f"piecework.commands.{name.replace('-', '_')}")


def parsed(name: str) -> Any:
    """Return a command of the program as click has it."""
    module = module_of(name)
    if hasattr(module, "command"):
        app = typer.Typer()
        app.command(name=name)(module.command)
        return typer.main.get_command(app)
    return typer.main.get_command(module.app)


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
