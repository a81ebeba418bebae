"""The demo on a terminal: the canvas while it is being denoised, and the account of it
afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from piecework.client.jobs.events import CanvasText, DraftText, JobEvent, JobFinished, JobStarted
from piecework.commands._common import amount

REFRESHES_PER_SECOND = 20
LINES_SHOWN = 8


@dataclass(slots=True)
class _View:
    """One job as it looks now."""

    finished: str = ""
    draft: str = ""
    canvas: int = 0
    step: int = 0
    cost: int = 0
    done: bool = False


@dataclass(slots=True)
class DemoScreen:
    """Follows the jobs live. On something that is no terminal it only says when a phase starts."""

    console: Console
    quiet: bool = False
    views: dict[int, _View] = field(default_factory=dict)
    _live: Live | None = None

    def phase(self, text: str) -> None:
        """Say what happens next."""
        if not self.quiet:
            self.console.print(Text(text, style="dim"))

    def __enter__(self) -> Self:
        if not self.quiet and self.console.is_terminal:
            self._live = Live(
                self._render(),
                console=self.console,
                refresh_per_second=REFRESHES_PER_SECOND,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def saw(self, number: int, event: JobEvent) -> None:
        """Something happened in a job."""
        view = self.views.setdefault(number, _View())
        if isinstance(event, DraftText):
            view.draft, view.canvas, view.step = event.text, event.canvas, event.step
        elif isinstance(event, CanvasText):
            view.finished += event.text
            view.draft, view.cost = "", event.cost
        elif isinstance(event, JobFinished):
            view.done, view.cost = True, event.cost
        elif isinstance(event, JobStarted):
            view.draft = ""
        if self._live is not None:
            self._live.update(self._render())

    def _render(self) -> RenderableType:
        open_views = [(n, v) for n, v in self.views.items() if not v.done]
        panels: list[RenderableType] = [self._panel(n, v) for n, v in open_views[:3]]
        if len(self.views) > 1:
            done = sum(v.done for v in self.views.values())
            paid = sum(v.cost for v in self.views.values())
            panels.append(Text(f"{done} jobs done, {len(open_views)} running, paid {amount(paid)}"))
        return Group(*panels)

    def _panel(self, number: int, view: _View) -> Panel:
        body = Text(view.finished)
        body.append(view.draft, style="dim italic")
        title = f"job {number + 1} · canvas {view.canvas} · denoising step {view.step}"
        return Panel(body, title=title, subtitle=f"paid {amount(view.cost)}", height=LINES_SHOWN)


def show_report(console: Console, report: dict[str, Any]) -> None:
    """The account of a finished demo."""
    console.print(Panel(Text(report["text"]), title="the text", padding=(1, 2)))
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for name, value in _facts(report):
        table.add_row(name, value)
    console.print(table)
    _show_receipts(console, report)
    for problem in report["problems"]:
        console.print(Text(f"does not hold: {problem}", style="bold red"))
    if report["ok"]:
        console.print(
            Text(
                "✓ settled amount equals the last voucher · every receipt proves into the root · ",
                style="green",
            )
            + Text("money is conserved", style="green")
        )


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    before, after = report["balances"]["before"], report["balances"]["after"]
    spent = ", ".join(f"{name} {gas:,}" for name, gas in report["gas"].items() if name != "per_job")
    jobs = len(report["jobs"])
    facts = [
        ("worker", f"{report['worker']['operator']} at {report['worker']['endpoint']}"),
        ("model", f"{report['model']}  {report['model_digest']}"),
        (
            "jobs",
            f"{jobs}: {report['canvases']} canvases, {report['tokens']} tokens, "
            f"{report['denoising_steps']} denoising steps",
        ),
        ("receipts root", report["receipts_root"]),
        (
            "voucher",
            f"{amount(report['voucher']['cumulative'])} for {report['voucher']['count']} receipts",
        ),
        ("settlement", str(report["settlement_tx"])),
        ("gas", f"{report['gas']['per_job']:,} per job ({spent})"),
    ]
    for who in ("payer", "receiver", "escrow"):
        change = after[who] - before[who]
        facts.append(
            (
                who,
                f"{amount(before[who])} → {amount(after[who])}  "
                f"({'+' * (change > 0)}{amount(change)})",
            )
        )
    times = " · ".join(
        f"{name} {value / 1000:.2f} s" for name, value in report["timings_ms"].items()
    )
    facts.append(("time", times))
    return facts


def _show_receipts(console: Console, report: dict[str, Any], most: int = 8) -> None:
    table = Table(title="receipts", title_justify="left", box=None, padding=(0, 2))
    for heading in (
        "leaf",
        "job",
        "canvas",
        "tokens",
        "steps",
        "paid",
        "output digest",
        "trace root",
    ):
        table.add_column(
            heading, justify="right" if heading in ("leaf", "canvas", "tokens", "steps") else "left"
        )
    for receipt in report["receipts"][:most]:
        table.add_row(
            str(receipt["leaf_index"]),
            receipt["job_id"][:10] + "…",
            str(receipt["canvas"]),
            str(receipt["units"]),
            str(receipt["steps"]),
            amount(receipt["amount"]),
            receipt["output_digest"][:10] + "…",
            receipt["trace_root"][:10] + "…",
        )
    console.print(table)
    if len(report["receipts"]) > most:
        console.print(Text(f"  and {len(report['receipts']) - most} more", style="dim"))
