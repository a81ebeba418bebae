"""The page of `bench.audit`: docs/audits.md with its tables and its plot, and the thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bench.audit_table import (
    CLAIMS,
    COMMON,
    HONEST,
    WORKERS,
    AuditedRow,
    Canvas,
    Share,
    count,
    fit,
    machines,
    read,
    said_of,
    small,
    together,
)
from bench.report import ROOT, percentile
from piecework_model.audit.judgement import (
    THRESHOLDS_FILE,
    Pairing,
    Tails,
    arithmetic,
    dump_table,
    threshold,
)

SAME_PROFILE: Final = ("bfloat16", "float32", "fp8")
GOAL_HONEST: Final = 2000
GOAL_CHEATS: Final = 300
"""Canvases of each worker that the page is to rest on."""
BEGIN: Final = "<!-- bench.audit: begin -->"
END: Final = "<!-- bench.audit: end -->"
PLOT: Final = "audits/logits.svg"
"""Where the plot lies beside the page."""


@dataclass(frozen=True, slots=True)
class Places:
    """The files that are written."""

    page: Path
    plot: Path
    thresholds: Path

    @classmethod
    def below(cls, folder: Path | None) -> Places:
        """Those of the repository, or copies of them in a folder, which is made."""
        page = ROOT / "docs" / "audits.md"
        if folder is None:
            return cls(page, page.parent / PLOT, THRESHOLDS_FILE)
        folder.mkdir(parents=True, exist_ok=True)
        copy = folder / page.name
        copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
        return cls(copy, folder / PLOT, folder / THRESHOLDS_FILE.name)


def write(folder: Path, model: str, places: Places) -> None:
    """Write thresholds, table and plot, of the figures in a folder."""
    figures = read(folder, model)
    table = fit(figures, model)
    rows = list(count(figures, table, model))
    source = f"python -m bench.audit --write, {_honest_canvases(figures)} honest canvases"
    usable = placed(shipped(table, rows, model), *devices(folder))
    places.thresholds.write_text(dump_table(usable, source), encoding="utf-8")
    places.plot.parent.mkdir(parents=True, exist_ok=True)
    places.plot.write_text(plot(figures, table, model), encoding="utf-8")
    page = places.page.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    far, beside = together(figures, table, model)
    lines = (
        *counts(figures, model, machines(folder)),
        *tables(figures, rows),
        "",
        f"Of honest texts, {far.hits} of {far.of} are beyond a value that {COMMON:.0%} exceed, by",
        "one of two tests. Of the canvases beside one of them in its job,",
        f"{beside.hits} of {beside.of} are.",
    )
    made = "\n".join([BEGIN, "", *lines, "", END])
    places.page.write_text(before + made + after, encoding="utf-8")


def shipped(
    table: Mapping[Pairing, Tails], rows: Sequence[AuditedRow], model: str
) -> dict[Pairing, Tails]:
    """Return the thresholds that may blame a worker: of pairs whose honest workers all reach the
    goal. The others stay out, and an audit of such a pair says that there is no verdict.
    """
    reached: dict[Pairing, bool] = {}
    for row in rows:
        if row.honest:
            pairing = row.pairing(model)
            reached[pairing] = reached.get(pairing, True) and row.reached is True
    return {pairing: tails for pairing, tails in table.items() if reached.get(pairing)}


def placed(table: Mapping[Pairing, Tails], worker: str, auditor: str) -> dict[Pairing, Tails]:
    """Say of each pair on which kinds of device it was measured, as an audit asks for it."""
    return {
        replace(
            pairing,
            worker=arithmetic(pairing.worker, worker),
            auditor=arithmetic(pairing.auditor, auditor),
        ): tails
        for pairing, tails in table.items()
    }


def devices(folder: Path) -> tuple[str, str]:
    """Say on which kinds of device the workers and auditors of a folder computed."""
    said = said_of(folder, "setting")
    auditor = said[0]["device"] if said else "cpu"
    shown_by = said[0].get("shown_by", "") if said else ""
    return (shown_by.partition(" ")[0] if shown_by else auditor), auditor


def _honest_canvases(figures: Mapping[str, list[Canvas]]) -> int:
    return sum(len(figures.get(name, [])) for name in HONEST)


def counts(
    figures: Mapping[str, list[Canvas]], model: str, measured_on: Sequence[str]
) -> Iterator[str]:
    """Say what was measured, how much of it, and what is missing."""
    honest = _honest_canvases(figures)
    cheats = sum(map(len, figures.values())) - honest
    asked = len({c.number for canvases in figures.values() for c in canvases})
    yield f"{honest} honest canvases and {cheats} of cheats, model `{model[:16]}…`."
    yield f"All workers answer the same requests. {asked} are different."
    for place in measured_on:
        yield f"Measured on {place}."
    yield ""
    yield (
        f"The goal is {GOAL_HONEST} canvases of each honest worker and {GOAL_CHEATS} of each cheat."
    )
    missing = [name for name in WORKERS if len(figures.get(name, [])) < _goal(name)]
    if missing:
        yield f"**It is not reached** by {len(missing)} of {len(WORKERS)} workers."
    yield ""
    yield "| worker | canvases | goal | of jobs | for thresholds | counted |"
    yield "|---|---|---|---|---|---|"
    for name, worker in WORKERS.items():
        mine = figures.get(name, [])
        fitted = sum(c.calibrates for c in mine) if name in HONEST else 0
        jobs = len({c.number for c in mine})
        held = sum(not c.calibrates for c in mine)
        yield f"| {worker} | {len(mine)} | {_goal(name)} | {jobs} | {fitted} | {held} |"


def _goal(name: str) -> int:
    return GOAL_HONEST if name in HONEST else GOAL_CHEATS


def tables(figures: Mapping[str, list[Canvas]], rows: Sequence[AuditedRow]) -> Iterator[str]:
    """Say what replays and forced audits found."""
    yield ""
    yield "### Replay"
    yield ""
    yield "| worker | auditor | canvases whose leaves differ |"
    yield "|---|---|---|"
    for name, canvases_ in figures.items():
        replayed = [c for c in canvases_ if "differs_at" in c.row]
        if not replayed:
            continue
        share = Share(sum(c.row["differs_at"] is not None for c in replayed), len(replayed))
        other = name in HONEST and name not in SAME_PROFILE
        auditor = "another profile: no verdict" if other else "the offered profile"
        yield f"| {WORKERS[name]} | {auditor} | {share} |"
    yield ""
    yield "### Forced"
    yield ""
    yield f"![Each worker's score of the test logits, and the threshold]({PLOT})"
    yield ""
    yield (
        "| worker | kind | auditor | decided by one | looks wrong | beside one that does "
        "| wrong, ten, from one | failed, ten, resampled | wrong, extrapolated | goal "
        "| tests that failed |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    yield from map(_forced, rows)


def _forced(row: AuditedRow) -> str:
    tests = ", ".join(f"{name} {hits}" for name, hits in row.tests.items() if hits) or "–"
    low, high = row.wrong_ten
    of, value = "one" if row.honest else "ten", row.extrapolated
    wrong = "–" if math.isnan(value) else f"{small(value)} of {of}"
    goal = {None: "–", True: "reached", False: "**missed**"}[row.reached]
    beside = f"{row.beside.hits} of {row.beside.of}" if row.beside.of else "–"
    return (
        f"| {WORKERS[row.worker]} | {row.kind} | {row.auditor} | {row.decided} | {row.wrong} "
        f"| {beside} | {small(low)} to {small(high)} | {row.found_ten:.1%} | {wrong} | {goal} "
        f"| {tests} |"
    )


# The plot

_WIDTH: Final = 760
_LEFT: Final = 250
_LINE: Final = 26


def plot(figures: Mapping[str, list[Canvas]], table: Mapping[Pairing, Tails], model: str) -> str:
    """Draw the logits score of every worker's texts, audited in float32: from the first to the 99th
    percentile, the middle half thick, beside the threshold.
    """
    shown: list[tuple[str, list[float]]] = []
    for name, canvases in figures.items():
        values = [
            s.logits
            for c in canvases
            if c.row["kind"] == "text" and (s := c.scores("float32")) is not None
            if s.logits is not None and CLAIMS.get(name, "bfloat16") == "bfloat16"
        ]
        if values:
            shown.append((name, values))
    tails = table.get(Pairing(model, "text", "bfloat16", "float32"), {})
    tail = tails.get("logits")
    limits = [threshold("logits", tail)] if tail else []
    every = [v for _, values in shown for v in (percentile(values, 0.01), max(values))] + limits
    low, high = math.log(max(1e-4, min(every, default=0.01))), math.log(max(every, default=1.0))

    def x(value: float) -> float:
        share = (math.log(max(value, 1e-4)) - low) / max(1e-9, high - low)
        return _LEFT + share * (_WIDTH - _LEFT - 20)

    height = _LINE * (len(shown) + 2)
    size = f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
    ]
    for limit in limits:
        parts.append(
            f'<line x1="{x(limit):.1f}" x2="{x(limit):.1f}" y1="{_LINE}" y2="{height - 8}" '
            f'stroke="#b00" stroke-dasharray="4 3"/>'
            f'<text x="{x(limit):.1f}" y="{_LINE - 8}" text-anchor="middle" fill="#b00">'
            f"{limit:.3g}</text>"
        )
    for index, (name, values) in enumerate(shown):
        parts.append(_bar(_LINE * (index + 1) + _LINE / 2, name, values, x))
    return "\n".join([*parts, "</svg>", ""])


def _bar(y: float, name: str, values: list[float], x: Any) -> str:
    ends = [x(percentile(values, share)) for share in (0.01, 0.25, 0.5, 0.75, 0.99)]
    color = "#06c" if name in HONEST else "#555"
    return (
        f'<text x="{_LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{WORKERS[name]}</text>'
        f'<line x1="{ends[0]:.1f}" x2="{ends[4]:.1f}" y1="{y}" y2="{y}" stroke="{color}"/>'
        f'<line x1="{ends[1]:.1f}" x2="{ends[3]:.1f}" y1="{y}" y2="{y}" stroke="{color}" '
        f'stroke-width="7"/><circle cx="{ends[2]:.1f}" cy="{y}" r="4" fill="{color}"/>'
    )
