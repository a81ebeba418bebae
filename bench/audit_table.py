"""From the figures of `bench.audit` to thresholds, and to what forced audits find with them."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.audit_figures import WorkerFigures, whole_lines
from piecework.client.audits.suspicion import MOST_CANVASES, chance_of_verdict, is_verdict
from piecework_model.audit import judgement
from piecework_model.audit.judgement import (
    AVERAGED,
    FALSE_REJECTS,
    Pairing,
    Tails,
    fit_tail,
    in_unit,
    judge,
    threshold,
)

DECIDING: Final = tuple(test for test in judgement.TESTS if test not in AVERAGED)
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
        span = f"{small(low)} to {small(high)}" if self.hits else f"below {small(high)}"
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


def small(value: float) -> str:
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


def said_of(folder: Path, what: str) -> list[dict[str, Any]]:
    """List what the files of a folder say of all their figures: "setting" or "environment"."""
    return [
        line[what]
        for file in sorted(folder.glob("*.jsonl"))
        for line in whole_lines(file)
        if what in line
    ]


def machines(folder: Path) -> list[str]:
    """Say where the figures of a folder were measured, and at which commits."""
    texts = (
        f"{one['cores']} cores of {one['cpu']}, torch {one['torch']}, commit {one['commit']}"
        for one in said_of(folder, "environment")
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
class CanvasLook:
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
    jobs: dict[int, list[CanvasLook]] = {}
    for number, scores in seen:
        jobs.setdefault(number, []).append(_look(scores, tails))
    verdicts = [verdict for job in jobs.values() for verdict in job]
    failed = Counter(failure.test for s in alone for failure in judge(s, tails).failures)
    tests = {test: failed[test] for test in judgement.TESTS}
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
            jobs: dict[int, list[CanvasLook]] = {}
            for canvas in canvases:
                if (scores := canvas.scores(auditor)) is not None:
                    far = any(
                        in_unit(test, value) > tails[test].quantile(COMMON)
                        for test in AVERAGED & set(tails)
                        if (value := getattr(scores, test)) is not None
                    )
                    jobs.setdefault(canvas.number, []).append(CanvasLook(far, decides=False))
            beside = _beside(jobs)
            hits += sum(v.wrong for job in jobs.values() for v in job)
            of += sum(map(len, jobs.values()))
            beside_hits, beside_of = beside_hits + beside.hits, beside_of + beside.of
    return Share(hits, of), Share(beside_hits, beside_of)


def _look(scores: Scores, tails: Tails) -> CanvasLook:
    judged = judge(scores, tails)
    return CanvasLook(scores.impossible or not judged.passed, scores.impossible or judged.decides)


def _beside(jobs: Mapping[int, Sequence[CanvasLook]]) -> Share:
    """Count the canvases beside one that looks wrong, and those of them that do too."""
    hits = of = 0
    for job in jobs.values():
        looks = sum(v.wrong for v in job)
        hits, of = hits + looks * (looks - 1), of + looks * (len(job) - 1)
    return Share(hits, of)


def _ten_fail(jobs: Mapping[int, Sequence[CanvasLook]], draw: random.Random) -> bool:
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
