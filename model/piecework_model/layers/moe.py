"""The mixture of experts over the tokens of many sequences: each expert runs once a pass.

The sum over a token's experts runs in ascending order of the experts and rounds after each. The
loop of transformers' `DiffusionGemmaTextExperts` does the same, so both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from piecework_model.elementwise import by_rows
from piecework_model.layers.projections import Products

Expert = Callable[[Tensor], Tensor]


class Moe:
    """The experts of one layer.

    A module with a method `run(expert, rows)` (quantized or offloaded experts) is asked for each
    expert's output. If it has a method `expect(experts)`, it is told the order first. transformers'
    own module is run from its two weight tensors.
    """

    def __init__(self, experts: Any, products: Products) -> None:
        """Prepare each expert. products: how theirs are made."""
        self._count: int = experts.num_experts
        own = getattr(experts, "run", None)
        self._expect: Callable[[Sequence[int]], None] | None = getattr(experts, "expect", None)
        make = _plain if own is None else _foreign
        earlier = len(products.made)
        self._experts: list[Expert] = [
            make(experts, index, products) for index in range(self._count)
        ]
        each = (len(products.made) - earlier) // self._count
        self._products = products.made[earlier : earlier + each]  # those of one expert

    def __call__(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Compute the weighted sum [T, H] of each token's experts.

        chosen: [T, k] int64. weights: [T, k] float32.
        """
        tokens, k = chosen.shape
        chosen, by_expert = chosen.sort(dim=-1)
        weights = weights.gather(-1, by_expert)
        order = chosen.flatten().argsort(stable=True)  # [T * k], grouped by expert, then by token
        grouped = hidden[order // k]
        outputs = grouped.new_empty(grouped.shape)
        start = 0
        counts = chosen.flatten().bincount(minlength=self._count).tolist()
        if self._expect is not None:
            self._expect([expert for expert, count in enumerate(counts) if count])
        for expert, count in enumerate(counts):
            if count:
                stop = start + count
                outputs[start:stop] = self._run(expert, grouped, start, stop)
                start = stop
        outputs = (outputs * weights.flatten()[order][:, None]).to(hidden.dtype)
        back = order.argsort()
        scattered = outputs[back].view(tokens, k, -1)
        total = scattered[:, 0].clone()
        for rank in range(1, k):
            total += scattered[:, rank]
        return total

    def _run(self, expert: int, grouped: Tensor, start: int, stop: int) -> Tensor:
        """Compute the expert's output for grouped[start:stop]. Neighbours fill up too few rows."""
        count = stop - start
        filled = max((product.filled(count) for product in self._products), default=count)
        low = max(0, min(start, grouped.shape[0] - filled))
        high = max(stop, min(low + filled, grouped.shape[0]))
        return self._experts[expert](grouped[low:high])[start - low : stop - low]


def _foreign(experts: Any, index: int, products: Products) -> Expert:
    """Return an expert of a module that runs them itself."""
    codec = getattr(experts, "codec", None)
    name = (type(experts), codec and codec.name)
    return products.of_foreign(partial(experts.run, index), name, products.like.shape[1])


def _plain(experts: Any, index: int, products: Products) -> Expert:
    """Return transformers' expert `index`: act(gate) * up, then down."""
    gate_up = products.of_weight(experts.gate_up_proj[index])
    down = products.of_weight(experts.down_proj[index])
    act = experts.act_fn

    def run(rows: Tensor) -> Tensor:
        gate, up = gate_up(rows).chunk(2, dim=-1)
        return down(by_rows(act, gate) * up)

    return run
