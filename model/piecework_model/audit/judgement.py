"""The judgement of a forced audit: scores and thresholds in, a verdict out. Pure, without torch.

A threshold belongs to a model, a kind of job, the worker's precision and the auditor's. They are in
thresholds.json, which `python -m bench.audit` makes. Where there is no row there is no verdict: a
worker is never blamed for a pair that was not measured.

Two kinds of tests look at a canvas. A token that was changed stands in one canvas, and moves one
position farther than any honest engine does. So `argmax` and `sampling` decide by one canvas. Other
weights are in every canvas, and move all positions a little. Honest canvases do so too now and
then. So `logits` and `soft` make a canvas look wrong, and only several such canvases of a worker
are a verdict (`piecework.client.audits.suspicion`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Protocol

from piecework_model.errors import AuditError

TESTS: Final = ("logits", "soft", "argmax", "sampling")
AVERAGED: Final = frozenset({"logits", "soft"})
"""Means over all positions. One canvas beyond them looks wrong, and is no verdict."""
FALSE_REJECTS: Final = 1e-4
"""Share of honest audits that may fail."""
SUSPECTS: Final = 3e-4
"""Share of honest canvases that look wrong by the averaged tests together, by extrapolation."""
_ALLOWED: Final = {
    test: SUSPECTS / len(AVERAGED) if test in AVERAGED else FALSE_REJECTS / len(TESTS)
    for test in TESTS
}
"""Of each test. The two that decide by one canvas take half of the audits that may fail."""
THRESHOLDS_FILE: Final = Path(__file__).with_name("thresholds.json")
LEAST_THRESHOLDS: Final = {"argmax": 4.0, "sampling": 0.3}
"""Of the tests that look at one position. Now and then an honest engine takes another expert there,
and moves a logit or a distribution far: by 0.94 and 0.15 at most in 10,000 canvases. A token that
was changed is moved by 7 at least."""
MOST_SHAPE: Final = 0.5
"""A tail of more has no variance. From some hundred canvases such a shape is noise."""
_FORMAT: Final = "piecework-audit-thresholds/2"
_LEAST: Final = 1e-9


class Scored(Protocol):
    """The scores of a canvas, as in `scores.CanvasScores`."""

    @property
    def logits(self) -> float | None: ...
    @property
    def soft(self) -> float | None: ...
    @property
    def argmax(self) -> float | None: ...
    @property
    def sampling(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Pairing:
    """What a threshold is for.

    model: the model digest in hex. kind: "text" or "read". worker, auditor: how each computes, by
    `arithmetic`.
    """

    model: str
    kind: str
    worker: str
    auditor: str


def arithmetic(precision: str, device: str) -> str:
    """Name how somebody computes: "bfloat16" or "float32+fp8" on a CPU, "bfloat16 on cuda" on a
    card. What a card computes may be farther off, so it has thresholds of its own.
    """
    kind = device.partition(":")[0]
    return precision if kind == "cpu" else f"{precision} on {kind}"


@dataclass(frozen=True, slots=True)
class Tail:
    """The upper tail of a score over honest canvases: a generalized Pareto distribution.

    start: where it begins. share: of canvases beyond. scale, shape: its parameters, shape >= 0.
    `start` and `scale` are in the score's unit, or its logarithm if the test is averaged.
    """

    start: float
    share: float
    scale: float
    shape: float

    def quantile(self, beyond: float) -> float:
        """Return the value that this share of honest canvases exceeds, by extrapolation."""
        ratio = max(1.0, self.share / beyond)
        if self.shape < 1e-6:
            return self.start + self.scale * math.log(ratio)
        return self.start + self.scale / self.shape * (math.pow(ratio, self.shape) - 1)

    def beyond(self, value: float) -> float:
        """Return the share of honest canvases that exceeds a value, by extrapolation. At most
        `share`, also of a value before the tail.
        """
        if self.scale <= 0:  # all of the tail is at its start
            return self.share if value < self.start else 0.0
        if value <= self.start:
            return self.share
        excess = (value - self.start) / self.scale
        if self.shape < 1e-6:
            return self.share * math.exp(-excess)
        return self.share * math.pow(1 + self.shape * excess, -1 / self.shape)


@dataclass(frozen=True, slots=True)
class Failure:
    """A test that failed: its score and the threshold that it is beyond."""

    test: str
    score: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the tests say of a canvas. failures: empty if all passed."""

    failures: tuple[Failure, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.failures

    @property
    def decides(self) -> bool:
        """Whether this canvas alone shows that it is not the model's."""
        return any(failure.test not in AVERAGED for failure in self.failures)


Tails = Mapping[str, Tail]
"""One for each test."""
Table = Mapping[Pairing, Tails]


def judge(canvas: Scored, tails: Tails) -> Judgement:
    """Hold the scores of a canvas to their thresholds, where there is a score and a tail."""
    failures = []
    for test in TESTS:
        score = getattr(canvas, test)
        if score is None or test not in tails:
            continue
        if in_unit(test, score) > _limit(test, tails[test]):
            failures.append(Failure(test, score, threshold(test, tails[test])))
    return Judgement(tuple(failures))


def threshold(test: str, tail: Tail) -> float:
    """Compute the largest value of a test that passes."""
    limit = _limit(test, tail)
    return math.exp(limit) if test in AVERAGED else limit


def _limit(test: str, tail: Tail) -> float:
    """Compute the threshold in the unit of the tail."""
    limit = tail.quantile(_ALLOWED[test])
    return limit if test in AVERAGED else max(limit, LEAST_THRESHOLDS[test])


def in_unit(test: str, value: float) -> float:
    """Return a score in the unit of its tail."""
    return math.log(max(value, _LEAST)) if test in AVERAGED else value


def fit_tail(test: str, values: Sequence[float], share: float = 0.1) -> Tail:
    """Fit the tail of a test's scores over honest canvases, by probability-weighted moments.

    Hosking and Wallis, "Parameter and quantile estimation for the generalized Pareto distribution",
    1987. A negative shape would promise a largest value, so it counts as 0.

    Raises:
        ValueError: There are fewer than 20 values.
    """
    if len(values) < 20:
        raise ValueError(f"{len(values)} canvases show no tail")
    ordered = sorted(in_unit(test, value) for value in values)
    beyond = max(2, round(share * len(ordered)))
    start = ordered[-beyond - 1]
    excess = [value - start for value in ordered[-beyond:]]
    scale, shape = _pareto(excess)
    return Tail(start, beyond / len(ordered), scale, shape)


def _pareto(excess: Sequence[float]) -> tuple[float, float]:
    """Estimate scale and shape from ascending excesses."""
    count, mean = len(excess), fmean(excess)
    weighted = fmean((count - 0.65 - index) / count * value for index, value in enumerate(excess))
    spread = mean - 2 * weighted
    shape = 2 - mean / spread if spread > 0 else 0.0
    if shape <= 0:
        return mean, 0.0
    shape = min(shape, MOST_SHAPE)
    return mean * (1 - shape), shape


def load_table(file: Path = THRESHOLDS_FILE) -> Table:
    """Read the thresholds.

    Raises:
        AuditError: The file is not one that `bench.audit` makes.
    """
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
        if body["format"] != _FORMAT:
            raise KeyError("format")
        return {_pairing(row): _tails(row) for row in body["rows"]}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise AuditError(f"{file.name} cannot be used: {error}") from error


def dump_table(table: Table, source: str) -> str:
    """Write the thresholds as text. source: the command that made them."""
    rows = [
        {**asdict(pairing), "tails": {test: asdict(tail) for test, tail in tails.items()}}
        for pairing, tails in table.items()
    ]
    return json.dumps({"format": _FORMAT, "source": source, "rows": rows}, indent=1) + "\n"


def _pairing(row: Mapping[str, Any]) -> Pairing:
    return Pairing(*(str(row[name]) for name in ("model", "kind", "worker", "auditor")))


def _tails(row: Mapping[str, Any]) -> Tails:
    return {
        test: Tail(**{name: float(value) for name, value in tail.items()})
        for test, tail in row["tails"].items()
    }
