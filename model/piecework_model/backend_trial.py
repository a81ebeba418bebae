"""Try a fast implementation on the device before it is used.

An implementation takes the place of its oracle only if all of this holds on fixed random inputs:

1. It runs.
2. It agrees with the oracle, within a tolerance.
3. A row has the same bits in every batch. A result may not depend on who shares the batch.

The samplers, the mixtures of experts and the matrix products are all tried in this way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

RESULT = "result"
"""The name of the output of an implementation that has only one."""

Outputs = Mapping[str, Tensor]
"""Named outputs. The first dimension of each counts the rows of the batch."""
Run = Callable[[slice], Outputs]
"""Run the implementation on these rows of the inputs. It may overwrite nothing but a copy."""
Compare = Callable[[Outputs, Outputs], str]
"""Compare actual with expected outputs: why they do not agree, or an empty string."""


def why_rejected(
    run: Run,
    oracle: Callable[[], Outputs],
    *,
    rows: int,
    batches: Mapping[int, int],
    compare: Compare,
) -> str:
    """Say why an implementation may not be used. An empty string admits it.

    rows: of the inputs. batches: for each batch size, how many leading rows are run in batches of
    that size. oracle: the expected outputs of all rows.
    """
    try:
        whole = run(slice(0, rows))
        split = {
            size: _in_batches(run, size, min(rows, covered)) for size, covered in batches.items()
        }
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return f"it does not run: {first_line(error)}"
    if reason := compare(whole, oracle()):
        return reason
    for size, outputs in split.items():
        for name, output in outputs.items():
            if not torch.equal(output, whole[name][: len(output)]):
                return f"its {name} has other bits in a batch of {size} than in one of {rows}"
    return ""


def within(tolerance: float) -> Compare:
    """Compare single results: the largest error, as a share of the largest expected value."""

    def compare(actual: Outputs, expected: Outputs) -> str:
        wanted = expected[RESULT].float()
        error = (actual[RESULT].float() - wanted).abs().max() / wanted.abs().max()
        # A comparison with NaN is false, so NaN is rejected too.
        if not float(error) <= tolerance:
            return f"its results differ by {float(error):.2%} of the largest"
        return ""

    return compare


def first_line(error: Exception) -> str:
    """Shorten an error of torch or Triton, which may be a page long."""
    return str(error).partition("\n")[0]


def _in_batches(run: Run, size: int, rows: int) -> Outputs:
    """Run the leading rows in batches of `size` and join the outputs."""
    parts = [run(slice(start, min(start + size, rows))) for start in range(0, rows, size)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
