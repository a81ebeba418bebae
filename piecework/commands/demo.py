"""`piecework demo`: the main job, end to end, on this machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piecework.commands import _common as common

if TYPE_CHECKING:
    from piecework.demo.market import DemoMarket
    from piecework.demo.run import Options

app = common.single()

NEEDED = {"torch": "worker", "transformers": "worker", "eth": "chain"}


@app.callback()
def demo(
    *,
    prompt: Annotated[str | None, typer.Option(help="What to ask for.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=10_000, help="How many jobs to run.")] = 1,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="How many at once.")] = 1,
    max_tokens: Annotated[
        int, typer.Option(min=1, max=100_000, help="Longest answer, in tokens.")
    ] = 256,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63, help="Same seed, same text; random if not given."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the market running until Ctrl-C.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """A whole market on this machine: chain, index, worker, gateway, paid jobs, settled on an EVM.

    Exit code 0 only if the settled amount equals the last voucher, every receipt proves into the
    root and money is conserved.
    """
    _require_packages()
    from piecework.demo.run import DEFAULT_PROMPT, Options

    options = Options(prompt or DEFAULT_PROMPT, jobs, concurrency, seed, max_tokens)
    report = common.run(_demo(options, keep=keep, json=json))
    raise typer.Exit(0 if report["ok"] else 1)


async def _demo(options: Options, *, keep: bool, json: bool) -> dict[str, Any]:
    from rich.console import Console

    from piecework.demo.run import Demo, temporary_root
    from piecework.demo.screen import DemoScreen, show_report
    from piecework.processes import ProcessGroup

    console = Console(stderr=json, highlight=False)
    with temporary_root() as folder:
        root = Path(folder)
        async with ProcessGroup(root / "logs") as group:
            demo = Demo(options, DemoScreen(console, quiet=json))
            report = await demo.run(group, root)
            if json:
                common.print_json(report)
            else:
                show_report(console, report)
                if not keep:
                    console.print(NEXT, markup=False, soft_wrap=True)
            if keep and demo.market is not None:
                _show_lines(console, demo.market)
                await _until_interrupted(demo.market)
    return report


NEXT = """What next:
  piecework demo --keep           leave the market running, with lines to paste
  piecework demo --jobs 50 --concurrency 8
  piecework worker init           sell canvases from your GPU
  piecework client init           buy text with your own wallet
Each command explains itself with -h. The guides are in docs/."""

LINES = """
The market keeps running until Ctrl-C. Paste one of these:

# the explorer
{index}/

# curl
curl -s {url}/chat/completions -H 'content-type: application/json' \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "{prompt}"}}]}}'

# the openai package
from openai import OpenAI
client = OpenAI(base_url="{url}", api_key="none")
messages = [{{"role": "user", "content": "{prompt}"}}]
print(client.chat.completions.create(model="{model}", messages=messages).choices[0].message.content)

# the client and the worker
export PIECEWORK_PASSWORD={password}
{program} client run --home {client} "{prompt}"
{program} client receipts --home {client}
{program} worker status --home {worker}
"""


def _show_lines(console: Any, market: DemoMarket) -> None:
    """What to paste to go on from here."""
    import sys

    text = LINES.format(
        index=market.index.ready["url"],
        url=market.gateway.ready["url"],
        model=market.worker.ready["model"],
        prompt="Tell me a story about an owl and a map.",
        password=market.password,
        program=f"{sys.executable} -P -m piecework" if sys.argv[0].endswith(".py") else sys.argv[0],
        client=market.client_home,
        worker=market.worker_home,
    )
    console.print(text, markup=False, soft_wrap=True)


async def _until_interrupted(market: DemoMarket) -> None:
    """Until Ctrl-C or SIGTERM, or a role of the market ends by itself."""
    from piecework.commands._server import until_told_to_stop

    waiting: list[asyncio.Task[Any]] = [asyncio.create_task(until_told_to_stop(), name="signal")]
    for role in (market.worker, market.index, market.gateway):
        waiting.append(asyncio.create_task(role.process.wait(), name=role.name))
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()


def _require_packages() -> None:
    """One clear line when the installation lacks a part, before anything is started."""
    import importlib.util

    from piecework.base.explain import install_hint

    missing = sorted(
        {extra for name, extra in NEEDED.items() if importlib.util.find_spec(name) is None}
    )
    if missing:
        common.fail(
            f"the demo needs more than the client. Run make demo, or {install_hint(missing)}"
        )
