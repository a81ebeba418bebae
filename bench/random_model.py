"""DiffusionGemma with random weights, made where it will run: no checkpoint, no second copy.

The dimensions of the released model give 25.25 B parameters, 50 GB in bfloat16. The published
figure is 25.2 B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaTextConfig,
)

from piecework_model import precision
from piecework_model.bounds import ModelLimits
from piecework_model.layers.experts import (
    MATRICES,
    DeviceBytes,
    ExpertBytes,
    ExpertLayout,
    QuantizedExperts,
)
from piecework_model.layers.offload import ExpertCache, HostBytes
from piecework_model.layers.quantization import QuantizedLinear, Recipe
from piecework_model.layers.recipes import best_recipe
from piecework_model.precision import Quantization
from piecework_model.training.architecture import smallest_vision

SEED: Final = 20261125
WEIGHT_SPREAD: Final = 0.03
"""Standard deviation of the weights: logits with a spread of 1 to 2. It changes no time."""
MAX_STEPS: Final = 48  # as released


@dataclass(frozen=True, slots=True)
class RandomDimensions:
    """Sizes of a model; canvas, window and context in tokens. Every sixth layer has full
    attention."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    full_kv_heads: int
    full_head_dim: int
    experts: int
    top_k: int
    expert_width: int
    mlp_width: int
    window: int
    vocabulary: int
    canvas: int
    context: int


RELEASED: Final = RandomDimensions(
    layers=30,
    hidden=2816,
    heads=16,
    kv_heads=8,
    head_dim=256,
    full_kv_heads=2,
    full_head_dim=512,
    experts=128,
    top_k=8,
    expert_width=704,
    mlp_width=2112,
    window=1024,
    vocabulary=262_144,
    canvas=256,
    context=262_144,
)
SMALL: Final = RandomDimensions(
    layers=6,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    full_kv_heads=1,
    full_head_dim=32,
    experts=8,
    top_k=2,
    expert_width=32,
    mlp_width=96,
    window=32,
    vocabulary=5000,
    canvas=16,
    context=1024,
)


@dataclass(frozen=True, slots=True)
class RandomModel:
    """A model ready for an executor. weight_bytes: of all that a denoising step may read, each
    once. head_bytes: of the embedding, which is also the last layer. flops_token: of one token of a
    canvas in one step, attention's own products aside. codec: how weights are packed, or "none".
    host_bytes: of experts in host memory.
    """

    model: DiffusionGemmaForBlockDiffusion
    limits: ModelLimits
    codec: str
    parameters: int
    weight_bytes: int
    head_bytes: int
    flops_token: int
    host_bytes: int = 0

    @property
    def step_bytes(self) -> int:
        """What a step of 256 tokens and more reads: all weights, and the embedding twice, for the
        logits and for the soft embeddings that follow from them."""
        return self.weight_bytes + self.head_bytes


def build(
    dimensions: RandomDimensions,
    device: torch.device,
    quantization: Quantization,
    resident_share: float | None = None,
) -> RandomModel:
    """Random weights in bfloat16, or packed as the loader packs them.

    resident_share: of the experts, which are in host memory, so many are on the device too.
    """
    with torch.device("meta"):
        model = DiffusionGemmaForBlockDiffusion(config(dimensions))
    model.set_experts_implementation("eager")
    parameters = sum(
        p.numel() for name, p in model.named_parameters() if not precision.is_vision(name)
    )
    tensors = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    recipe = best_recipe(quantization, device, tensors)
    generator = torch.Generator(device).manual_seed(SEED)
    host_bytes = 0
    if recipe is not None:
        host_bytes = _pack(model, dimensions, recipe, generator, resident_share)
    _fill(model, generator)
    text = model.model.decoder
    head: torch.Tensor = text.embed_tokens.weight
    seen = {t.data_ptr(): t.nbytes for t in [*text.parameters(), *text.buffers()]}
    return RandomModel(
        model=model.eval().requires_grad_(False),
        limits=ModelLimits(dimensions.context, dimensions.canvas, MAX_STEPS, dimensions.vocabulary),
        codec=recipe.name if recipe is not None else "none",
        parameters=parameters,
        weight_bytes=sum(seen.values()),
        head_bytes=head.nbytes,
        flops_token=_flops_token(dimensions, parameters),
        host_bytes=host_bytes,
    )


def config(dimensions: RandomDimensions) -> DiffusionGemmaConfig:
    """The configuration of a model of these sizes, in the published format."""
    text = DiffusionGemmaTextConfig(
        vocab_size=dimensions.vocabulary,
        hidden_size=dimensions.hidden,
        intermediate_size=dimensions.mlp_width,
        num_hidden_layers=dimensions.layers,
        num_attention_heads=dimensions.heads,
        num_key_value_heads=dimensions.kv_heads,
        head_dim=dimensions.head_dim,
        global_head_dim=dimensions.full_head_dim,
        num_global_key_value_heads=dimensions.full_kv_heads,
        max_position_embeddings=dimensions.context,
        sliding_window=dimensions.window,
        num_experts=dimensions.experts,
        top_k_experts=dimensions.top_k,
        moe_intermediate_size=dimensions.expert_width,
    )
    return DiffusionGemmaConfig(
        text_config=text, vision_config=smallest_vision(), canvas_length=dimensions.canvas
    )


def released_recipe(
    dimensions: RandomDimensions, device: torch.device, quantization: Quantization
) -> Recipe | None:
    """What the loader would choose on this device."""
    with torch.device("meta"):
        model = DiffusionGemmaForBlockDiffusion(config(dimensions))
    tensors = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    return best_recipe(quantization, device, tensors)


def _pack(
    model: DiffusionGemmaForBlockDiffusion,
    dimensions: RandomDimensions,
    recipe: Recipe,
    generator: torch.Generator,
    resident_share: float | None,
) -> int:
    """Packed modules with random weights for linears and experts, in encoder and decoder alike.

    Returns the bytes of experts in host memory.
    """
    device = generator.device
    twins = {"model.decoder.layers.": "model.encoder.language_model.layers."}

    def place(path: str, module: nn.Module) -> None:
        model.set_submodule(path, module)
        for decoder, encoder in twins.items():
            if path.startswith(decoder):
                model.set_submodule(path.replace(decoder, encoder), module)

    linears = [
        name.removesuffix(".weight") for name in model.state_dict() if precision.is_linear(name)
    ]
    for path in linears:
        shape = model.get_parameter(f"{path}.weight").shape
        packed = QuantizedLinear(shape[1], shape[0], recipe.linears)
        packed.fill(_random(shape, generator), device)
        place(path, packed)
    layout = ExpertLayout(dimensions.hidden, dimensions.expert_width, recipe.experts)
    widths = {
        "gate_up_proj": (2 * dimensions.expert_width, dimensions.hidden),
        "down_proj": (dimensions.hidden, dimensions.expert_width),
    }
    everything = dimensions.layers * dimensions.experts * layout.expert_bytes
    cache = None
    if resident_share is not None:
        budget = max(layout.expert_bytes, int(resident_share * everything))
        population = dimensions.layers * dimensions.experts
        cache = ExpertCache(budget, layout.expert_bytes, population, device)
    for index in range(dimensions.layers):
        path = f"model.decoder.layers.{index}.experts"
        activation = model.get_submodule(path).act_fn
        source: ExpertBytes = (
            DeviceBytes(dimensions.experts, layout.expert_bytes, device)
            if cache is None
            else HostBytes(index, dimensions.experts, cache)
        )
        experts = QuantizedExperts(dimensions.experts, layout, recipe.experts, activation, source)
        for expert in range(dimensions.experts):
            for matrix in MATRICES:
                experts.fill(matrix, expert, _random(widths[matrix], generator), device)
        place(path, experts)
    return everything if cache is not None else 0


def _random(shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> torch.Tensor:
    values = torch.empty(shape, dtype=torch.bfloat16, device=generator.device)
    return values.normal_(0.0, WEIGHT_SPREAD, generator=generator)


def _fill(model: nn.Module, generator: torch.Generator) -> None:
    """Gives memory to what has none: matrices are random, norms and scalars 1; tied weights stay
    one."""
    made: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if parameter.is_meta and id(parameter) not in made:
            shape = parameter.shape
            ones = torch.ones(shape, dtype=torch.bfloat16, device=generator.device)
            made[id(parameter)] = nn.Parameter(
                _random(shape, generator) if len(shape) > 1 else ones
            )
        if parameter.is_meta:
            path, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(path), attribute, made[id(parameter)])
    for module in list(model.modules()):
        _fill_buffers(module, generator.device)


def _fill_buffers(module: Any, device: torch.device) -> None:
    """Buffers by kind: an embedding's scale, a layer's scalar, and what a rotary embedding
    computes."""
    empty = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
    if not empty:
        return
    if empty == ["embed_scale"]:
        value = torch.tensor(module.scalar_embed_scale, dtype=torch.bfloat16, device=device)
        module.register_buffer("embed_scale", value, persistent=False)
    elif empty == ["layer_scalar"]:
        module.layer_scalar = torch.ones(1, dtype=torch.bfloat16, device=device)
    elif hasattr(module, "config"):
        computed = type(module)(module.config).to(device)
        for name in empty:
            module.register_buffer(name, computed.get_buffer(name), persistent=False)
    else:  # of the vision tower, which nothing runs
        for name in empty:
            buffer = module.get_buffer(name)
            module.register_buffer(name, torch.zeros_like(buffer, device=device), persistent=False)


def _flops_token(dimensions: RandomDimensions, parameters: int) -> int:
    """Two operations a weight that a token meets; it meets the embedding twice, sleeping experts
    never."""
    expert = 3 * dimensions.hidden * dimensions.expert_width
    asleep = dimensions.layers * (dimensions.experts - dimensions.top_k) * expert
    return 2 * (parameters - asleep + dimensions.vocabulary * dimensions.hidden)
