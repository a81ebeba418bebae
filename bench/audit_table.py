"""From the figures of `bench.audit` to thresholds, the table in docs/audits.md and its plot."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from bench.audit_figures import WorkerFigures, whole_lines
from bench.report import ROOT, percentile
from piecework.client.suspicion import MOST_CANVASES, chance_of_verdict, is_verdict
from piecework_model.audit import judgement
from piecework_model.audit.judgement import (
    AVERAGED,
    FALSE_REJECTS,
    THRESHOLDS_FILE,
    Pairing,
    Tails,
    arithmetic,
    dump_table,
    fit_tail,
    in_unit,
    judge,
    threshold,
)

DECIDING: Final = tuple(test for test in judgement.TESTS if test not in AVERAGED)
GOAL_HONEST: Final = 2000
GOAL_CHEATS: Final = 300
"""Canvases of each worker that the page is to rest on."""
BEGIN: Final = "<!-- bench.audit: begin -->"
END: Final = "<!-- bench.audit: end -->"
PLOT: Final = "audits/logits.svg"
"""Where the plot lies beside the page."""
TEN: Final = 10
"""Audits of different jobs, one after the other."""
DRAWS: Final = 2000
COMMON: Final = 0.05
"""Share of honest canvases beyond a lower threshold, to see whether they come together in jobs."""
LEAST_CANVASES: Final = 40
"""Of a calibration half. Fewer show no tail."""
CONFIDENCE: Final = 0.95
FALSE_ACCEPTS: Final = 1e-3
"""Goal: tens of audits of a cheat of `GOAL_FOR` that pass."""
GOAL_FOR: Final = (
    "fp8-for-bfloat16",
    "int4",
    "half-the-steps",
    "older-checkpoint",
    "a-layer-less",
    "edited",
)

WORKERS: Final = {
    "bfloat16": "honest, bfloat16, one thread",
    "two-threads": "honest, bfloat16, two threads",
    "other-chunks": "honest, bfloat16, prompt cut at other places",
    "float32": "honest, float32",
    "fp8": "honest, fp8 as offered",
    "int8": "int8 weights",
    "fp8-for-bfloat16": "fp8 weights",
    "int4": "int4 experts, fp8 linears",
    "half-the-steps": "half the steps",
    "temperature": "temperature lower by a tenth",
    "older-checkpoint": "an older checkpoint",
    "a-layer-less": "a smaller model: one layer less",
    "cached": "the answer to another prompt",
    "other-seed": "another seed",
    "edited": "one token edited",
    "invented": "invented trace",
    "forged-numbers": "int4, fingerprints recomputed in bfloat16",
}
CLAIMS: Final = {"float32": "float32", "fp8": "bfloat16+fp8"}
"""What a worker's offer says, where it is not bfloat16."""
HONEST: Final = ("bfloat16", "two-threads", "other-chunks", "float32", "fp8")
SAME_PROFILE: Final = ("bfloat16", "float32", "fp8")


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of a canvas, as read from the figures. impossible: the opening was refused."""

    logits: float | None
    soft: float | None
    argmax: float | None
    sampling: float | None
    impossible: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many, and the bounds of the share at 95 % (Clopper and Pearson)."""

    hits: int
    of: int

    @property
    def share(self) -> float:
        return self.hits / self.of

    @property
    def bounds(self) -> tuple[float, float]:
        return clopper_pearson(self.hits, self.of)

    def __str__(self) -> str:
        if not self.of:
            return "–"
        low, high = self.bounds
        span = f"{_small(low)} to {_small(high)}" if self.hits else f"below {_small(high)}"
        return f"{self.hits} of {self.of} ({span})"


def clopper_pearson(hits: int, of: int) -> tuple[float, float]:
    """Compute the exact bounds of a share, by bisection on the binomial tails."""
    alpha = (1 - CONFIDENCE) / 2
    low = 0.0 if hits == 0 else _bisect(lambda p: 1 - _cdf(hits - 1, of, p) < alpha)
    high = 1.0 if hits == of else _bisect(lambda p: _cdf(hits, of, p) > alpha)
    return low, high


def _bisect(below: Any) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


def _cdf(hits: int, of: int, share: float) -> float:
    """Compute the chance of at most so many hits."""
    if share in (0.0, 1.0):
        return 1.0 if share == 0.0 or hits >= of else 0.0
    logs = [
        math.lgamma(of + 1)
        - math.lgamma(k + 1)
        - math.lgamma(of - k + 1)
        + k * math.log(share)
        + (of - k) * math.log1p(-share)
        for k in range(hits + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"


# Reading figures


@dataclass(frozen=True, slots=True)
class Canvas:
    """A line of the figures. number: of its request."""

    number: int
    row: Mapping[str, Any]

    @property
    def calibrates(self) -> bool:
        return self.number % 2 == 0

    def scores(self, auditor: str) -> Scores | None:
        """The scores that an auditor gave, if he audited it."""
        found = self.row.get(f"forced {auditor}")
        if found is None:
            return None
        if "impossible" in found:
            return Scores(None, None, None, None, impossible=True)
        return Scores(*(found[test] for test in judgement.TESTS))


def read(folder: Path, model: str) -> dict[str, list[Canvas]]:
    """Read the figures of every worker, of this checkpoint."""
    found: dict[str, list[Canvas]] = {}
    for name in WORKERS:
        file = folder / f"{name}.jsonl"
        said = [line["setting"] for line in whole_lines(file) if "setting" in line]
        if not said or any(one["model"] != model for one in said):
            continue
        blocks = WorkerFigures(file).blocks
        found[name] = [
            Canvas(row["request"], row) for number in sorted(blocks) for row in blocks[number]
        ]
    return found


def machines(folder: Path) -> list[str]:
    """Say where the figures of a folder were measured, and at which commits."""
    said = [
        line["environment"]
        for file in sorted(folder.glob("*.jsonl"))
        for line in whole_lines(file)
        if "environment" in line
    ]
    texts = (
        f"{one['cores']} cores of {one['cpu']}, torch {one['torch']}, commit {one['commit']}"
        for one in said
    )
    return list(dict.fromkeys(texts))


def auditors(canvases: Sequence[Canvas]) -> list[str]:
    """List who audited these canvases by forced passes."""
    names = {key.partition(" ")[2] for c in canvases for key in c.row if key.startswith("forced ")}
    return sorted(names)


def fit(figures: Mapping[str, list[Canvas]], model: str) -> dict[Pairing, Tails]:
    """Fit the thresholds of every pair, from the calibration half of its honest workers."""
    table: dict[Pairing, Tails] = {}
    for claim in ("bfloat16", "float32", "bfloat16+fp8"):
        mine = [
            c
            for name in HONEST
            if CLAIMS.get(name, "bfloat16") == claim
            for c in figures.get(name, [])
            if c.calibrates
        ]
        for auditor in auditors(mine):
            for kind in ("text", "read"):
                rows = [c for c in mine if c.row["kind"] == kind]
                seen = [s for c in rows if (s := c.scores(auditor)) is not None]
                tails = dict(_fitted(seen))
                if tails:
                    table[Pairing(model, kind, claim, auditor)] = tails
    return {pairing: _no_finer(pairing, table) for pairing in table}


def _no_finer(pairing: Pairing, table: Mapping[Pairing, Tails]) -> Tails:
    """Give a pair of one precision the tails of the pair with another one.

    Most of its canvases differ in nothing, and a tail of nothing has no width. But another order of
    sums now and then takes another expert, and then a canvas differs as much as one of another
    precision.
    """
    others = [
        tails
        for pair, tails in table.items()
        if (pair.kind, pair.worker) == (pairing.kind, pairing.worker)
        and pair.auditor != pairing.worker
    ]
    return others[0] if others and pairing.auditor == pairing.worker else table[pairing]


def _fitted(seen: Sequence[Scores]) -> Iterator[tuple[str, judgement.Tail]]:
    for test in judgement.TESTS:
        values = [value for scores in seen if (value := getattr(scores, test)) is not None]
        if len(values) >= LEAST_CANVASES:
            yield test, fit_tail(test, values)


# Counting


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a forced audit says of one canvas. decides: it fails without others."""

    wrong: bool
    decides: bool


@dataclass(frozen=True, slots=True)
class AuditedRow:
    """One worker, one kind, one auditor: on the half that did not make the thresholds.

    decided: canvases that fail without others. wrong: those and the ones that look wrong. beside:
    of the canvases beside one that looks wrong, in the same job, how many do too. found_ten: of the
    drawn tens of audits, as a share. wrong_one, missed_one: extrapolated, how many canvases of an
    honest worker look wrong or decide, and how many of a cheat look wrong. tests: which of them
    found how many.
    """

    worker: str
    kind: str
    auditor: str
    decided: Share
    wrong: Share
    beside: Share
    found_ten: float
    decided_one: float
    wrong_one: float
    tests: Mapping[str, int]

    @property
    def honest(self) -> bool:
        """Whether a failure is wrong. Of a cheat, a pass is."""
        return self.worker in HONEST

    def pairing(self, model: str) -> Pairing:
        """Return what its thresholds are for."""
        return Pairing(model, self.kind, CLAIMS.get(self.worker, "bfloat16"), self.auditor)

    @property
    def extrapolated(self) -> float:
        """How often an audit of an honest worker fails, or ten audits of a cheat pass."""
        if self.honest:
            return self.decided_one + chance_of_verdict(self.wrong_one)
        return (1 - chance_of_verdict(self.wrong_one)) ** TEN

    @property
    def wrong_ten(self) -> tuple[float, float]:
        """The bounds of how often ten audits of different jobs are judged wrong: an honest worker
        fails one of them, or a cheat passes all.
        """
        decided, looks = self.decided.bounds, self.wrong.bounds
        least = max(decided[0], chance_of_verdict(looks[0]))
        most = min(1.0, decided[1] + chance_of_verdict(looks[1]))
        low, high = ((1 - share) ** TEN for share in (most, least))
        return (1 - high, 1 - low) if self.honest else (low, high)

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached: for honest workers, and for the cheats that have one."""
        if self.honest:
            if math.isnan(self.extrapolated):
                return None
            counted = self.decided.share + chance_of_verdict(self.wrong.share)
            return max(self.extrapolated, counted) < FALSE_REJECTS
        if self.worker not in GOAL_FOR:
            return None
        shown = [value for value in (self.extrapolated, self.wrong_ten[1]) if not math.isnan(value)]
        return min(shown) < FALSE_ACCEPTS


def count(
    figures: Mapping[str, list[Canvas]], table: Mapping[Pairing, Tails], model: str
) -> Iterator[AuditedRow]:
    """Count what forced audits find."""
    for name, canvases in figures.items():
        for auditor in auditors(canvases):
            for kind in ("text", "read"):
                pairing = Pairing(model, kind, CLAIMS.get(name, "bfloat16"), auditor)
                held = [c for c in canvases if not c.calibrates and c.row["kind"] == kind]
                if pairing in table and len(held) >= TEN:
                    yield _row(name, kind, auditor, held, table[pairing])


def _row(name: str, kind: str, auditor: str, held: Sequence[Canvas], tails: Tails) -> AuditedRow:
    seen = [(c.number, s) for c in held if (s := c.scores(auditor)) is not None]
    alone = [scores for _, scores in seen]
    jobs: dict[int, list[Verdict]] = {}
    for number, scores in seen:
        jobs.setdefault(number, []).append(_verdict(scores, tails))
    verdicts = [verdict for job in jobs.values() for verdict in job]
    tests = {
        test: sum(test in {f.test for f in judge(s, tails).failures} for s in alone)
        for test in judgement.TESTS
    }
    draw = random.Random(len(seen))  # noqa: S311  resampling, no secret
    decided = Share(sum(v.decides for v in verdicts), len(verdicts))
    wrong = Share(sum(v.wrong for v in verdicts), len(verdicts))
    if name in HONEST:
        decided_one = _beyond(alone, tails, DECIDING)
        wrong_one = _beyond(alone, tails, AVERAGED)
    else:
        decided_one, wrong_one = math.nan, _looks_wrong(alone, tails)
    return AuditedRow(
        name,
        kind,
        auditor,
        decided,
        wrong,
        _beside(jobs),
        sum(_ten_fail(jobs, draw) for _ in range(DRAWS)) / DRAWS,
        decided_one,
        wrong_one,
        tests,
    )


def together(
    figures: Mapping[str, list[Canvas]], table: Mapping[Pairing, Tails], model: str
) -> tuple[Share, Share]:
    """Count honest texts beyond what a twentieth of them exceeds, and those beside one in its job.

    Shares of each of `AVERAGED`, of all canvases. If canvases look wrong independently, the two
    shares are alike. Few canvases look wrong by the thresholds themselves, so these are lower.
    """
    hits = of = beside_hits = beside_of = 0
    for name in HONEST:
        canvases = [c for c in figures.get(name, []) if c.row["kind"] == "text"]
        for auditor in auditors(canvases):
            claim = CLAIMS.get(name, "bfloat16")
            tails = table.get(Pairing(model, "text", claim, auditor))
            if tails is None or auditor == claim:  # most of those differ in nothing
                continue
            jobs: dict[int, list[Verdict]] = {}
            for canvas in canvases:
                if (scores := canvas.scores(auditor)) is not None:
                    far = any(
                        in_unit(test, value) > tails[test].quantile(COMMON)
                        for test in AVERAGED & set(tails)
                        if (value := getattr(scores, test)) is not None
                    )
                    jobs.setdefault(canvas.number, []).append(Verdict(far, decides=False))
            beside = _beside(jobs)
            hits += sum(v.wrong for job in jobs.values() for v in job)
            of += sum(map(len, jobs.values()))
            beside_hits, beside_of = beside_hits + beside.hits, beside_of + beside.of
    return Share(hits, of), Share(beside_hits, beside_of)


def _verdict(scores: Scores, tails: Tails) -> Verdict:
    judged = judge(scores, tails)
    return Verdict(scores.impossible or not judged.passed, scores.impossible or judged.decides)


def _beside(jobs: Mapping[int, Sequence[Verdict]]) -> Share:
    """Count the canvases beside one that looks wrong, and those of them that do too."""
    hits = of = 0
    for job in jobs.values():
        looks = sum(v.wrong for v in job)
        hits, of = hits + looks * (looks - 1), of + looks * (len(job) - 1)
    return Share(hits, of)


def _ten_fail(jobs: Mapping[int, Sequence[Verdict]], draw: random.Random) -> bool:
    """Draw ten audits, and say whether one of them fails. The canvases of an audit are drawn from
    different jobs, while there are enough.
    """
    numbers = sorted(jobs)
    for _ in range(TEN):
        wrong = 0
        some = draw.sample(numbers, min(MOST_CANVASES, len(numbers)))
        for seen, number in enumerate(some, 1):
            verdict = draw.choice(jobs[number])
            wrong += verdict.wrong
            if verdict.decides or (verdict.wrong and is_verdict(wrong, seen)):
                return True
            if not wrong:
                break
    return False


def _looks_wrong(alone: Sequence[Scores], tails: Tails) -> float:
    """Extrapolate how many canvases of a cheat fail the test of the logits.

    The model: the logarithms of the scores are normal.
    """
    logs = [in_unit("logits", s.logits) for s in alone if s.logits is not None]
    if len(logs) < TEN or "logits" not in tails:
        return 1.0 if not logs else math.nan
    limit = math.log(threshold("logits", tails["logits"]))
    normal = statistics.NormalDist(statistics.fmean(logs), max(statistics.stdev(logs), 1e-9))
    return 1 - normal.cdf(limit)


def _beyond(alone: Sequence[Scores], tails: Tails, tests: Iterable[str]) -> float:
    """Extrapolate how many canvases fail some tests, from the tails of these canvases themselves.

    The model: beyond its upper tenth each score is Pareto, as in `fit_tail`. The tests are added
    up.
    """
    shares = []
    for test in tests:
        values = [value for s in alone if (value := getattr(s, test)) is not None]
        if test not in tails:
            continue
        if len(values) < LEAST_CANVASES:
            return math.nan
        limit = in_unit(test, threshold(test, tails[test]))
        shares.append(fit_tail(test, values).beyond(limit))
    return sum(shares)


# Writing


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
        f"Of honest texts, {far.hits} of {far.of} are beyond a value that {COMMON:.0%} exceed. Of",
        f"the canvases beside one of them in its job, {beside.hits} of {beside.of} are.",
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
    said = [
        line["setting"]
        for file in sorted(folder.glob("*.jsonl"))
        for line in whole_lines(file)
        if "setting" in line
    ]
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
    wrong = "–" if math.isnan(value) else f"{_small(value)} of {of}"
    goal = {None: "–", True: "reached", False: "**missed**"}[row.reached]
    beside = f"{row.beside.hits} of {row.beside.of}" if row.beside.of else "–"
    return (
        f"| {WORKERS[row.worker]} | {row.kind} | {row.auditor} | {row.decided} | {row.wrong} "
        f"| {beside} | {_small(low)} to {_small(high)} | {row.found_ten:.1%} | {wrong} | {goal} "
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
