"""Batch invariance: numbers of rows among which a row of a product has the same bits.

Libraries choose kernels, and so orders of summation, by shape. A product of 1 to 3 rows is often
another sum than the same rows among 64. On some processors 64 rows are another sum than 500. The
order depends on shapes and never on the values, so it is measured with values that show it.

So each product is made in pieces whose numbers of rows were tried and are alike, and too few rows
are filled up. A row's result is then a function of the row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional

Projection = Callable[[Tensor], Tensor]
"""[rows, in] to [rows, out]."""

ROW_COUNTS: Final[tuple[int, ...]] = (*range(8, 64, 8), *range(64, 256, 16), *range(256, 641, 32))
"""Numbers of rows that are tried. A product of a weight has no other number."""
_TRIED: Final = frozenset(ROW_COUNTS)
MOST_FILLED: Final = 64
"""To so many rows a product may be filled up. More of them would cost more than they save."""
_ROWS: Final = 640
"""Rows of a trial."""
_MOVED: Final = 4
"""By so many places rows are moved, to see whether the place in a tile matters."""
_FEW_COUNTS: Final = (8, 24, 64, 208, 640)
"""Tried first of a module that multiplies in its own way. Each call may unpack its weights."""
_SEED: Final = 20260214


@dataclass(frozen=True, slots=True)
class RowSpan:
    """Numbers of rows among which no row of a product depends on the number.

    They are those of `ROW_COUNTS` from `fewest` to `most`. most: 0 if any number will do.
    """

    fewest: int = 1
    most: int = 0

    def holds(self, count: int) -> bool:
        """Say whether a product may have so many rows."""
        return not self.most or (self.fewest <= count <= self.most and count in _TRIED)

    def piece_rows(self, count: int) -> int:
        """Say how many rows the pieces have that so many rows are cut into or filled up to."""
        if not self.most:
            return count
        pieces = -(-count // self.most)
        rows = max(self.fewest, -(-count // pieces))
        return next(tried for tried in ROW_COUNTS if tried >= rows)


class ProductKind(Protocol):
    """What makes two products alike. Each kind is measured once. It can be hashed."""

    @property
    def device(self) -> torch.device: ...

    def measured(self, run: Projection) -> RowSpan | None:
        """Find the span. None: a row depends on its place too. run: a product of this kind."""
        ...


@dataclass(frozen=True, slots=True)
class WeightKind:
    """Products with weights [out, in] of one shape and layout, as `make` makes them.

    They are measured with a weight of their own, so a span is the same for all values.
    """

    make: Callable[[Tensor], Projection]
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, make: Callable[[Tensor], Projection], weight: Tensor) -> WeightKind:
        """Describe products with a weight."""
        return cls(make, tuple(weight.shape), weight.stride(), weight.dtype, weight.device)

    @torch.inference_mode()
    def measured(self, run: Projection) -> RowSpan | None:
        """Find the span, as `ProductKind.measured` says."""
        rows, weight = cancelling(*self.shape)
        placed = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        trial = self.make(placed.copy_(weight))
        return _best(_spans_of(trial, rows.to(placed)))


@dataclass(frozen=True, slots=True)
class ForeignKind:
    """Modules that multiply rows of one width in their own way. `name` tells them apart."""

    name: Hashable
    width: int
    dtype: torch.dtype
    device: torch.device

    @torch.inference_mode()
    def measured(self, run: Projection) -> RowSpan | None:
        """Find the span, as `ProductKind.measured` says."""
        generator = torch.Generator(device="cpu").manual_seed(_SEED)
        rows = torch.randn((_ROWS, self.width), generator=generator)
        rows = rows.to(self.device, self.dtype)
        if _best(_spans_of(run, rows, _FEW_COUNTS)) == RowSpan(_FEW_COUNTS[0], _ROWS):
            return RowSpan()
        return _best(_spans_of(run, rows))


_spans: dict[tuple[ProductKind, int], RowSpan | None] = {}
"""What was measured in this process, by kind and number of threads."""


@dataclass(frozen=True, slots=True)
class InvariantProduct:
    """A product whose rows have the same bits whatever their number is, if it has a span.

    run: makes it.
    """

    run: Projection
    kind: ProductKind
    _known: dict[int, RowSpan | None] = field(default_factory=dict)

    def span(self) -> RowSpan | None:
        """Return the span, measured once for this number of threads. None: there is none."""
        threads = torch.get_num_threads() if self.kind.device.type == "cpu" else 0
        if threads not in self._known:
            key = (self.kind, threads)
            if key not in _spans:
                _spans[key] = self.kind.measured(self.run)
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


def cancelling(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Return rows [640, in] and a weight [out, in] whose products are zero but for their rounding.

    Each input has a partner, with the same values in the rows and the opposite ones in the weight.
    So what is left over is the error of the sum, and another order of it is another result. With
    plain random values most of the error is rounded away in 16 bits.
    """
    generator = torch.Generator(device="cpu").manual_seed(_SEED)
    order = torch.randperm(inputs, generator=generator)
    half = inputs // 2
    rows = torch.randn((_ROWS, inputs), generator=generator)
    weight = torch.randn((outputs, inputs), generator=generator)
    rows[:, order[half : 2 * half]] = rows[:, order[:half]]
    weight[:, order[half : 2 * half]] = -weight[:, order[:half]]
    if inputs % 2:
        rows[:, order[-1]] = 0
    return rows, weight


def _best(spans: Iterable[RowSpan]) -> RowSpan | None:
    """Choose the span that goes farthest, of those that begin with few rows."""
    some = (span for span in spans if span.fewest <= MOST_FILLED)
    return max(some, key=lambda span: span.most, default=None)


def _spans_of(
    run: Projection, rows: Tensor, counts: Sequence[int] = ROW_COUNTS
) -> Iterator[RowSpan]:
    """List the spans of a product: longest stretches of counts that all give the same bits.

    What is not alike on two places of its own product is of none.
    """
    first, fewest, most = rows, 0, 0  # of the stretch so far
    for count in counts:
        pieces = torch.split(rows[: len(rows) // count * count], count)
        made = torch.cat([run(piece.clone()) for piece in pieces])
        # The largest has no room to move. Its rows are turned around.
        moved = torch.roll(rows, -_MOVED, 0)[:count]
        still = _same(run(moved), torch.roll(made, -_MOVED, 0)[: count - _MOVED])
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
