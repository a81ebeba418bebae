"""transformers' own modules with the products of our executors.

The reference executor, and `generate` where the two are compared, must add up in one order with the
fast executor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import DiffusionGemmaForBlockDiffusion

from piecework_model.layers.invariance import Projection
from piecework_model.layers.projections import is_plain, products_of

Place = tuple[int, tuple[int, ...]]
"""Where a weight begins in memory, and its shape."""


class OwnProducts(TorchFunctionMode):
    """A context in which a model's linear modules multiply as in the fast executor.

    What makes states of images is left as it is, as there. So is everything on an accelerator,
    where the two multiply by other kernels and are compared for that.
    """

    def __init__(self, model: DiffusionGemmaForBlockDiffusion) -> None:
        super().__init__()
        self._products = products_of(model)
        on_cpu = model.device.type == "cpu"
        self._places = {_place(weight) for weight in _weights(model)} if on_cpu else set()
        self._made: dict[Place, Projection] = {}
        self.embeddings: Tensor = model.model.decoder.embed_tokens.weight
        """[V, H]."""
        self._soft_product = self._products.of_embeddings(
            self.embeddings, model.config.canvas_length
        )

    def soft_embeddings(self, probabilities: Tensor) -> Tensor:
        """Multiply probabilities [rows, V] by the embeddings."""
        return self._soft_product(probabilities)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch for every function."""
        if func is functional.linear and not kwargs and args[2:] in ((), (None,)):
            return self._linear(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _linear(self, states: Tensor, weight: Tensor) -> Tensor:
        place = _place(weight)
        if place not in self._places:
            return functional.linear(states, weight)
        if place not in self._made:
            self._made[place] = self._products.of_weight(weight)
        rows = self._made[place](states.reshape(-1, states.shape[-1]))
        return rows.view(*states.shape[:-1], -1)


def _weights(model: Any) -> Iterator[Tensor]:
    """List the weights that the fast executor multiplies by, of linear modules and of experts."""
    for name, module in model.named_modules():
        if "vision" in name:
            continue
        if is_plain(module):
            yield module.weight
        elif isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
            yield from module.gate_up_proj
            yield from module.down_proj


def _place(weight: Tensor) -> Place:
    return weight.data_ptr(), tuple(weight.shape)
