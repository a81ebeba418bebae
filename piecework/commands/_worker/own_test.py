"""`piecework worker try`: a prompt of the owner's own on the worker's engine."""

from __future__ import annotations

import asyncio
import json as jsons
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piecework.commands import _common as common
from piecework.commands._worker.changes import HomeOption, Json

if TYPE_CHECKING:
    from rich.text import Text

EVERY_S = 0.2
DEFAULT_PROMPT = "Write a short story about a machine that earns its own power."


def register(app: typer.Typer) -> None:
    """Add this command to `piecework worker`."""
    app.command("try")(own_test)


def own_test(
    prompt: Annotated[str, typer.Argument(help="What to answer.")] = DEFAULT_PROMPT,
    *,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of the answer. Default: two canvases.")
    ] = None,
    home: HomeOption = None,
    json: Json = False,
) -> None:
    """Run a prompt of your own on this worker's engine.

    No client, no money, no receipt. It shows that the machine generates, and how fast. It takes
    steps beside paid jobs. Ctrl-C ends it. `worker top` shows it too.
    """
    test = common.run(_run(common.home("worker", home), prompt, max_tokens, quiet=json))
    if json:
        common.print_json(test)
    else:
        _say(test)
    if test["state"] == "failed":
        raise typer.Exit(1)


async def _run(root: Path, prompt: str, max_tokens: int | None, *, quiet: bool) -> dict[str, Any]:
    """Start a test job and follow it to its end."""
    from piecework_node.daemon.admin import ask_daemon

    asked = {"prompt": prompt, "max_tokens": max_tokens}
    test = await ask_daemon(root, "POST", "/test", jsons.dumps(asked).encode())
    number = test["number"]
    with ExitStack() as stack:
        live = None
        if not quiet and sys.stdout.isatty():
            from rich.live import Live

            live = stack.enter_context(Live(refresh_per_second=10, transient=True))
        try:
            while test["state"] == "running" and test["number"] == number:
                await asyncio.sleep(EVERY_S)
                test = await ask_daemon(root, "GET", "/test")
                if live is not None:
                    live.update(_picture(test))
        except asyncio.CancelledError:
            await ask_daemon(root, "POST", "/test/stop")
            raise
    return test


def _picture(test: dict[str, Any]) -> Text:
    from rich.text import Text

    from piecework.commands._terminal import shown

    text = Text(shown(test["text"]))
    text.append(shown(test["draft"]), style="dim italic")
    where = f"canvas {test['canvas'] + 1}, step {test['step']} of {test['max_steps']} at most"
    text.append(f"\n{where}, {test['seconds']:.1f} s", style="cyan")
    return text


def _say(test: dict[str, Any]) -> None:
    from piecework.base.text import one_line, write
    from piecework.commands._terminal import MAX_REASON_CHARACTERS, shown

    write(sys.stdout, shown(test["text"]) + "\n")
    seconds, tokens = test["seconds"], test["tokens"]
    rate = f", {tokens / seconds:.1f} tokens/s" if seconds and tokens else ""
    first = test["first_canvas_s"]
    common.say(
        f"{test['state']}: {tokens} tokens and {test['steps']} denoising steps in {seconds:.1f} s"
        f"{rate}" + (f", the first canvas after {first:.1f} s" if first is not None else "")
    )
    if test["why"]:
        common.say(one_line(test["why"], MAX_REASON_CHARACTERS))
