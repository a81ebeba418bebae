"""The demo on a terminal: the roles that start, the canvas while it is denoised, the account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from piecework.base.amounts import Token
from piecework.base.text import one_line, printable
from piecework.client.jobs.events import CanvasText, DraftText, JobEvent, JobFinished, JobStarted

REFRESHES_PER_SECOND = 20
LINES_SHOWN = 8
RECEIPTS_SHOWN = 8
MAX_TEXT = 20_000
NAMES = 13
"""Columns of the names in the account."""
WIDEST = 1000
"""Columns. No table of ours needs as many."""
NO_TOKEN = Token(None, "", 0)


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of a table, whose cells are never cut."""

    heading: str
    cells: Sequence[str]
    justify: JustifyMethod = "right"


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
    """Follow the demo live. Where the output is not a terminal, print one line for each step."""

    console: Console
    quiet: bool = False
    token: Token = NO_TOKEN
    views: dict[int, _View] = field(default_factory=dict)
    _roles: dict[str, float | None] = field(default_factory=dict)
    _live: Live | None = None

    def phase(self, text: str) -> None:
        """Say what happens next."""
        if not self.quiet:
            self.console.print(Text(text, style="dim"))

    # --- the market

    def expect(self, roles: Mapping[str, str]) -> None:
        """Show the processes that will start, by name; `roles` gives what each of them does."""
        self._roles = dict.fromkeys(roles)
        if self.quiet:
            return
        for name, task in roles.items():
            self.console.print(Text(f"  {name:8} {task}", style="dim"))
        self._start_live()

    def ready(self, name: str, seconds: float) -> None:
        """One process is ready, `seconds` after the demo began."""
        self._roles[name] = seconds
        if self._live is not None:
            self._live.update(self._render())
        elif not self.quiet:
            self.console.print(Text(f"  {name} ready after {seconds:.1f} s", style="dim"))
        if all(at is not None for at in self._roles.values()):
            self._stop_live()
            self._roles.clear()

    def _waiting(self) -> RenderableType:
        line = Text()
        for name, at in self._roles.items():
            mark, style = ("…", "dim") if at is None else (f"{at:.1f} s", "green")
            line.append(f" {name} {mark} ", style=style)
        return Spinner("dots", line)

    # --- the jobs

    def __enter__(self) -> Self:
        if not self.quiet:
            self._start_live()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_live()

    def saw(self, number: int, event: JobEvent) -> None:
        """Take notice of an event of job `number`."""
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

    def _start_live(self) -> None:
        if self.console.is_terminal and self._live is None:
            self._live = Live(
                self._render(),
                console=self.console,
                refresh_per_second=REFRESHES_PER_SECOND,
                transient=True,
            )
            self._live.start()

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> RenderableType:
        if self._roles:
            return self._waiting()
        open_views = [(n, v) for n, v in self.views.items() if not v.done]
        panels: list[RenderableType] = [self._panel(n, v) for n, v in open_views[:3]]
        if len(self.views) > 1:
            done = sum(v.done for v in self.views.values())
            paid = self.token.format(sum(v.cost for v in self.views.values()))
            panels.append(Text(f"{done} jobs done, {len(open_views)} running, paid {paid}"))
        return Group(*panels)

    def _panel(self, number: int, view: _View) -> Panel:
        body = Text(printable(view.finished, lines=True, limit=MAX_TEXT))
        body.append(printable(view.draft, lines=True, limit=MAX_TEXT), style="dim italic")
        title = f"job {number + 1} · canvas {view.canvas + 1} · denoising step {view.step + 1}"
        paid = f"paid {self.token.format(view.cost)}"
        return Panel(body, title=title, subtitle=paid, height=LINES_SHOWN)


def show_report(console: Console, report: dict[str, Any]) -> None:
    """Print the account of a finished demo. It fits 80 columns and cuts no amount and no hash."""
    text = printable(report["text"], lines=True, limit=MAX_TEXT)
    console.print(Panel(Text(text), title="the text", padding=(1, 2)))
    token = Token(None, report["token"]["symbol"], report["token"]["decimals"])
    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column(style="dim", min_width=NAMES, no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(report, token):
        table.add_row(name, Text(value))
    console.print(table)
    _show_balances(console, report, token)
    _show_receipts(console, report, token)
    for problem in report["problems"]:
        console.print(Text(f"does not hold: {problem}", style="bold red"))
    if report["ok"]:
        for promise in (
            "the settled amount equals the last voucher",
            "every receipt proves into the root that the chain recorded",
            "money is conserved",
        ):
            console.print(Text(f"✓ {promise}", style="green"))


def short(hexadecimal: str) -> str:
    """Return the beginning and the end of a hash or address: "0x7cb37298…0151"."""
    return f"{hexadecimal[:10]}…{hexadecimal[-4:]}"


def _facts(report: dict[str, Any], token: Token) -> list[tuple[str, str]]:
    parts = {name: units for name, units in report["gas"].items() if name != "per_job"}
    gas = " + ".join(f"{name} {units:,}" for name, units in parts.items())
    model = one_line(report["model"] or "-", 40)
    jobs, voucher, times = len(report["jobs"]), report["voucher"], report["timings_ms"]
    named = "1 job" if jobs == 1 else f"{jobs} jobs"
    return [
        ("worker", f"{short(report['worker']['operator'])} at {report['worker']['endpoint']}"),
        (
            "model",
            f"{model}, digest {short(report['model_digest'])}",
        ),
        (
            "work",
            (
                f"{named}, {report['canvases']} canvases, {report['tokens']} tokens, "
                f"{report['denoising_steps']} denoising steps"
            ),
        ),
        ("voucher", f"{token.format(voucher['cumulative'])} for {voucher['count']} receipts"),
        ("opening fee", f"{token.format(report['fees'])} to the worker, which paid the gas"),
        ("receipts root", short(report["receipts_root"])),
        ("settlement", short(str(report["settlement_tx"]))),
        ("gas a job", f"{report['gas']['per_job']:,}"),
        ("gas in all", gas),
        ("time", " · ".join(f"{name} {ms / 1000:.1f} s" for name, ms in times.items())),
    ]


def _aligned(token: Token, amounts: Sequence[int]) -> list[str]:
    """Return amounts with equally many decimals, so that their points stand in one column."""
    numbers = [token.number(units) for units in amounts]
    places = max((len(n.partition(".")[2]) for n in numbers), default=0)
    return [n.ljust(len(n) + places - len(n.partition(".")[2]), "0") for n in numbers]


def _fits(console: Console, table: Table) -> bool:
    """Whether no cell of a table has to be cut."""
    options = console.options.update(max_width=WIDEST)
    return Measurement.get(console, options, table).maximum <= console.width


def _table(columns: Sequence[_Column]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for column in columns:
        table.add_column(column.heading, justify=column.justify, no_wrap=True)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table


def _show_balances(console: Console, report: dict[str, Any], token: Token) -> None:
    before, after = report["balances"]["before"], report["balances"]["after"]
    headings = ("before", "after", "change")
    rows: list[tuple[str, list[str]]] = []
    for who in ("payer", "receiver", "escrow"):
        change = after[who] - before[who]
        old, new, moved = _aligned(token, [before[who], after[who], change])
        rows.append((who, [old, new, ("+" if change > 0 else "") + moved]))
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column(token.symbol, style="dim", min_width=NAMES, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for who, amounts in rows:
        table.add_row(who, *amounts)
    if not _fits(console, table):  # one below the other then
        table = Table(box=None, padding=(0, 1), header_style="dim")
        table.add_column(style="dim", min_width=NAMES, no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(token.symbol, justify="right", no_wrap=True)
        for who, amounts in rows:
            for name, heading, amount in zip((who, "", ""), headings, amounts, strict=True):
                table.add_row(name, heading, amount)
    console.print()
    console.print(table)


def _show_receipts(console: Console, report: dict[str, Any], token: Token) -> None:
    shown = report["receipts"][:RECEIPTS_SHOWN]

    def column(heading: str, key: str) -> _Column:
        return _Column(heading, [str(receipt[key]) for receipt in shown])

    def hashes(heading: str, key: str) -> _Column:
        return _Column(heading, [short(receipt[key]) for receipt in shown], "left")

    number = column("receipt", "leaf_index")
    work = [column("canvas", "canvas"), column("tokens", "units"), column("steps", "steps")]
    paid = _Column(token.symbol, _aligned(token, [receipt["amount"] for receipt in shown]))
    proofs = [hashes("output digest", "output_digest"), hashes("trace root", "trace_root")]
    tables = [_table([number, *work, paid, *proofs])]
    if not _fits(console, tables[0]):
        tables = [_table([number, *work, paid]), _table([number, *proofs])]
    for table in tables:
        console.print()
        console.print(table)
    more = len(report["receipts"]) - RECEIPTS_SHOWN
    if more > 0:
        console.print(Text(f" and {more} more", style="dim"))
    console.print()
