"""Batch invariance: numbers of rows among which a row of a product has the same bits.

Libraries choose kernels, and so orders of summation, by shape. A product of 1 to 3 rows is often
another sum than the same rows among 64. On some processors 64 rows are another sum than 500. The
order depends on shapes and addresses and never on the values, so random values show it.

So each product is made in pieces whose numbers of rows are in one span, and too few rows are filled
up. A row's result is then a function of the row alone.

Products in float32 that are rounded to bfloat16 are measured before they are rounded. Few
differences of a sum cross a rounding, so random values would seldom show one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

Projection = Callable[[Tensor], Tensor]
"""[rows, in] to [rows, out]."""

ROW_COUNTS: Final = (
    *range(1, 17),
    20,
    24,
    31,
    32,
    33,
    48,
    64,
    65,
    96,
    128,
    192,
    256,
    320,
    384,
    512,
    576,
)
"""Numbers of rows that are tried first: all small ones, and those around the tiles of kernels."""
STEP: Final = 16
"""The numbers of rows of a span with an end are multiples of it: of the rows of a tile."""
MOST_FILLED: Final = 64
"""To so many rows a product may be filled up. More of them would cost more than they save."""
_MOST_ROWS: Final = 640
"""The most rows of a tried product: as many as a pass on a CPU has."""
_MOVED: Final = STEP // 2
"""By so many places rows are moved, to see whether the place in a tile matters."""
_MOST_PIECES: Final = 40
"""How many products of one number of rows are tried at most."""
_TRIED_RESULTS: Final = {torch.float32: 2**12}
_TRIED_HALVES: Final = 2**17
"""About so many results are compared. A sum that was added up in another order is another in most
cases in float32, and in one of some thousands after it was rounded to 16 bits."""
_SEED: Final = 20260214


@dataclass(frozen=True, slots=True)
class RowSpan:
    """Numbers of rows among which no row of a product depends on the number.

    most: 0 if there is no end. Else only multiples of `STEP` are of the span.
    """

    fewest: int = 1
    most: int = 0

    def holds(self, count: int) -> bool:
        """Say whether a product may have so many rows."""
        if not self.most:
            return count >= self.fewest
        return self.fewest <= count <= self.most and count % STEP == 0

    def piece_rows(self, count: int) -> int:
        """Say how many rows the pieces have that so many rows are cut into or filled up to."""
        if not self.most:
            return max(count, self.fewest)
        pieces = -(-count // self.most)
        rows = -(-count // pieces)
        return max(self.fewest, -(-rows // STEP) * STEP)


_spans: dict[Hashable, RowSpan | None] = {}
"""What was measured in this process, by what makes two products alike."""


@dataclass(frozen=True, slots=True)
class InvariantProduct:
    """A product whose rows have the same bits whatever their number is, if it has a span.

    run: makes it. kind: what makes two products alike, for measuring each kind once. like: a tensor
    of its rows' width, device and type.
    """

    run: Projection
    kind: Hashable
    like: Tensor
    _known: dict[int, RowSpan | None] = field(default_factory=dict)

    def span(self) -> RowSpan | None:
        """Return the span, measured once for this number of threads. None: there is none."""
        threads = torch.get_num_threads()
        if threads not in self._known:
            like = self.like
            key = (self.kind, like.shape[1], like.device, like.dtype, threads)
            if key not in _spans:
                _spans[key] = measure(self.run, like)
            self._known[threads] = _spans[key]
        return self._known[threads]

    def filled(self, count: int) -> int:
        """Say to how many rows the caller should fill up so many, or return `count`.

        Rows that lie beside them in memory are there already, and zeros have to be copied.
        """
        span = self.span()
        if span is None or (span.most and count > span.most):
            return count
        return span.piece_rows(count)

    def __call__(self, rows: Tensor) -> Tensor:
        """Multiply [rows, in]. Without a span all rows are one product."""
        count, span = rows.shape[0], self.span()
        if span is None or not count or span.holds(count):
            return self.run(rows)
        return _in_pieces(self.run, rows, span.piece_rows(count))


def _in_pieces(run: Projection, rows: Tensor, size: int) -> Tensor:
    """Multiply rows in pieces of one size. The last one is filled up with zeros."""
    count = rows.shape[0]
    if lacking := -count % size:
        rows = functional.pad(rows, (0, 0, 0, lacking))
    pieces = [run(piece) for piece in torch.split(rows, size)]
    made = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return made[:count] if lacking else made


@torch.inference_mode()
def measure(run: Projection, like: Tensor) -> RowSpan | None:
    """Find the span of a product with rows like these. None: a row depends on its place too.

    A span that begins with few rows and has no end is best. Of those with an end, the one that goes
    farthest and begins with at most `MOST_FILLED`.
    """
    generator = torch.Generator(device="cpu").manual_seed(_SEED)
    width = like.shape[1]
    rows = torch.randn((_MOST_ROWS, width), generator=generator).to(like)
    whole = run(rows)
    results = _TRIED_RESULTS.get(like.dtype, _TRIED_HALVES)
    if (lacking := results // whole.numel()) > 0:  # a narrow product has few results a row
        more = torch.randn((min(lacking, 4) * _MOST_ROWS, width), generator=generator)
        rows = torch.cat([rows, more.to(like)])
        whole = torch.cat([run(batch) for batch in torch.split(rows, _MOST_ROWS)])
    fewest = MOST_FILLED + 1
    for count in reversed(ROW_COUNTS):
        if not _alike(run, rows, whole, count, results // (count * whole.shape[1])):
            break
        fewest = count  # one that was tried: those between it and the next may be like either
    if fewest <= MOST_FILLED:
        return RowSpan(fewest)
    spans = [span for span in _bounded(run, rows) if span.fewest <= MOST_FILLED]
    return max(spans, key=lambda span: span.most, default=None)


def _alike(run: Projection, rows: Tensor, whole: Tensor, count: int, pieces: int) -> bool:
    """Say whether rows in pieces of so many have the bits that they have among all."""
    tried = min(len(rows) // count, max(2, min(pieces, _MOST_PIECES)))
    return all(
        torch.equal(run(rows[start : start + count].clone()), whole[start : start + count])
        for start in range(0, tried * count, count)
    )


def _bounded(run: Projection, rows: Tensor) -> Iterator[RowSpan]:
    """List the spans of multiples of `STEP`: longest stretches in which all give the same bits.

    What is not alike on two places of its own product is of none.
    """
    first, fewest, most = rows, 0, 0  # of the stretch so far
    rows = rows[:_MOST_ROWS]
    for count in range(STEP, _MOST_ROWS - _MOVED + 1, STEP):  # so many have two places
        pieces = torch.split(rows[: _MOST_ROWS // count * count], count)
        made = torch.cat([run(piece.clone()) for piece in pieces])
        moved = run(rows[_MOVED : _MOVED + count].clone())
        still = _same(moved, made[_MOVED:])
        if fewest and still and _same(made, first):
            most = count
            continue
        if fewest:
            yield RowSpan(fewest, most)
        first, fewest, most = (made, count, count) if still else (made, 0, 0)
    if fewest:
        yield RowSpan(fewest, most)


def _same(one: Tensor, other: Tensor) -> bool:
    """Say whether two products of the same rows are equal, as far as both go."""
    both = min(len(one), len(other))
    return torch.equal(one[:both], other[:both])
