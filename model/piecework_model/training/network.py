"""Both halves of the model as functions of its parameters, made for training on a CPU.

They compute what transformers' forward computes, and a test holds them to it. They are faster for
four reasons: matrix products may be in bfloat16, a canvas looks at its own keys and at no other
canvas's, all experts are one product each way, and the normalization has a backward pass of its
own. Everything but the products is in float32.

B = rows, C = canvas length, K = canvases of the batch, L = context length, H = hidden size, V =
vocabulary, D = size of a head.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import embedding, gelu, linear, softmax
from transformers import DiffusionGemmaForBlockDiffusion

Weights = Mapping[str, Tensor]
Angles = tuple[Tensor, Tensor]
_UNSEEN: Final = -1e30
_LAYERS: Final = "model.encoder.language_model.layers."


class _Normalized(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) over the last dimension, without a gain."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = squares.mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
        y: Tensor = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        (gradient,) = gradients
        shared = (gradient * y).mean(-1, keepdim=True)
        return torch.addcmul(gradient, y, shared, value=-1).mul_(scale), None


def fastest_products() -> torch.dtype:
    """Return bfloat16 where this CPU multiplies it natively, and float32 where that is emulated.
    There it takes twice as long as float32. torch tells nobody which, so both are tried.
    """
    times = {}
    for kind in (torch.float32, torch.bfloat16):
        left, right = torch.ones(2048, 256, dtype=kind), torch.ones(256, 1024, dtype=kind)
        tries = []
        for _ in range(5):
            started = time.perf_counter()
            left @ right
            tries.append(time.perf_counter() - started)
        times[kind] = min(tries)
    return min(times, key=times.__getitem__)


@dataclass(frozen=True, slots=True)
class EncodedContext:
    """What the encoder makes of contexts [B, L].

    hidden: [B, L, H]. cache: keys and values [B, L, heads, D], one pair a layer.
    """

    hidden: Tensor
    cache: tuple[tuple[Tensor, Tensor], ...]


class Network:
    """The functions of one model. They share its parameters, so gradients reach them."""

    def __init__(
        self, model: DiffusionGemmaForBlockDiffusion, products: torch.dtype = torch.bfloat16
    ) -> None:
        """Use `products` for matrix products."""
        config = model.config.text_config
        named = dict(model.named_parameters())
        count = config.num_hidden_layers
        self._layers = [_below(named, f"{_LAYERS}{index}.") for index in range(count)]
        self._types: list[str] = config.layer_types[:count]
        decoder = model.model.decoder
        self._embeddings: Tensor = decoder.embed_tokens.weight
        self._conditioning = _below(dict(decoder.self_conditioning.named_parameters()), "")
        self._last_gain: Tensor = decoder.norm.weight
        self._rotary = decoder.rotary_emb
        self._window: int = config.sliding_window
        self._canvas: int = model.config.canvas_length
        self._cap: float = config.final_logit_softcapping
        self._experts: int = config.top_k_experts
        self._eps: float = config.rms_norm_eps
        self._scale: float = config.hidden_size**0.5
        self._products = products

    def encode(self, context: Tensor) -> EncodedContext:
        """Run the encoder over contexts [B, L]. Padding stands behind every real token."""
        length = context.shape[1]
        places = torch.arange(length)
        behind = places[:, None] - places[None, :]
        causal = behind >= 0
        masks = {
            "full_attention": _mask(causal)[None, None],
            "sliding_attention": _mask(causal & (behind < self._window))[None, None],
        }
        angles = self._angles(places[None])
        hidden = embedding(context, self._embeddings) * self._scale
        cache = []
        for weights, kind in zip(self._layers, self._types, strict=True):
            queries, keys, values = self._projected(weights, hidden, angles[kind])
            scores = self._scores(queries, keys) + masks[kind][:, :, None]
            mixed = self._mixed(softmax(scores, -1), values)
            hidden = self._behind_attention(weights, hidden, mixed.flatten(-2))
            cache.append((keys, values))
        return EncodedContext(self._normalized(hidden, self._last_gain), tuple(cache))

    def denoise(
        self, encoded: EncodedContext, noisy: Tensor, starts: Tensor, previous: Tensor | None
    ) -> Tensor:
        """Run the denoiser over canvases [B, K * C] and return hidden states [B, K * C, H].

        starts: [B, K] where each canvas stands, which is what it sees of its context too.
        previous: the logits [B, K * C, V] of the step before, divided by its temperature, or None
            at step 0.
        """
        hidden = embedding(noisy, self._embeddings) * self._scale
        soft = torch.zeros_like(hidden)
        if previous is not None:
            soft = self._product(softmax(previous, -1), self._embeddings.T) * self._scale
        own = self._conditioning
        signal = self._gated(self._normalized(soft, own["pre_norm.weight"]), own, "")
        hidden = self._normalized(hidden + signal)
        places = starts[:, :, None] + torch.arange(self._canvas)
        angles = self._angles(places.flatten(1))
        masks = self._context_masks(starts, encoded.hidden.shape[1])
        for weights, kind, kept in zip(self._layers, self._types, encoded.cache, strict=True):
            queries, keys, values = self._projected(weights, hidden, angles[kind])
            mixed = self._canvas_attention(queries, (keys, values), kept, masks[kind])
            hidden = self._behind_attention(weights, hidden, mixed)
        return self._normalized(hidden, self._last_gain)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute soft-capped logits [..., V] of hidden states [..., H]."""
        return torch.tanh(self._product(hidden, self._embeddings) / self._cap) * self._cap

    def _context_masks(self, starts: Tensor, length: int) -> dict[str, Tensor]:
        """Make masks [B, 1, 1, K * C, L]: a canvas sees the context before it. A sliding layer
        sees the last window - 1 tokens of that, which is what the sliding KV cache keeps.
        """
        start = starts.repeat_interleave(self._canvas, dim=1)[:, :, None]
        key = torch.arange(length)
        before = key < start
        near = before & (key >= start - (self._window - 1))
        masks = {"full_attention": before, "sliding_attention": near}
        return {kind: _mask(seen)[:, None, None] for kind, seen in masks.items()}

    def _canvas_attention(
        self,
        queries: Tensor,
        own: tuple[Tensor, Tensor],
        context: tuple[Tensor, Tensor],
        mask: Tensor,
    ) -> Tensor:
        """Attend from canvases [B, K * C, heads, D] to their context and themselves."""
        rows, span, heads, size = queries.shape
        length, canvas = context[0].shape[1], self._canvas
        alone = rows * (span // canvas), canvas
        keys, values = (part.reshape(*alone, *part.shape[2:]) for part in own)
        outer = self._scores(queries, context[0]) + mask
        inner = self._scores(queries.reshape(*alone, heads, size), keys)
        groups = inner.shape[1:3]
        # [B * K, groups, heads a group, C, C] to the shape of `outer` but for its last dimension.
        shaped = inner.view(rows, -1, *groups, canvas, canvas).permute(0, 2, 3, 1, 4, 5)
        weights = softmax(torch.cat((outer, shaped.reshape(*outer.shape[:-1], canvas)), -1), -1)
        inside = weights[..., length:].reshape(rows, *groups, -1, canvas, canvas)
        inside = inside.permute(0, 3, 1, 2, 4, 5).reshape(inner.shape)
        mixed = self._mixed(weights[..., :length], context[1]).flatten(-2)
        return mixed + self._mixed(inside, values).reshape(mixed.shape)

    def _projected(
        self, weights: Weights, hidden: Tensor, angles: Angles
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute queries, keys and values [B, S, heads, D] of one layer."""
        hidden = self._normalized(hidden, weights["input_layernorm.weight"])
        gains = weights["self_attn.q_norm.weight"], weights["self_attn.k_norm.weight"]
        shape = (*hidden.shape[:-1], -1, gains[0].shape[0])
        queries = self._product(hidden, weights["self_attn.q_proj.weight"]).view(shape)
        keys = self._product(hidden, weights["self_attn.k_proj.weight"]).view(shape)
        own = weights.get("self_attn.v_proj.weight")
        values = keys if own is None else self._product(hidden, own).view(shape)
        return (
            _rotated(self._normalized(queries, gains[0]), angles),
            _rotated(self._normalized(keys, gains[1]), angles),
            self._normalized(values),
        )

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Compute scores [B, groups, heads a group, S, T]. A group of heads shares its keys."""
        rows, span, heads, size = queries.shape
        groups = keys.shape[2]
        folded = queries.view(rows, span, groups, -1, size).permute(0, 2, 3, 1, 4)
        folded = folded.reshape(rows, groups, -1, size).to(self._products)
        scores = folded @ keys.to(self._products).permute(0, 2, 3, 1)
        return scores.view(rows, groups, heads // groups, span, -1).float()

    def _mixed(self, weights: Tensor, values: Tensor) -> Tensor:
        """Mix values [B, T, groups, D] into [B, S, heads, D]."""
        rows, groups, each, span, _ = weights.shape
        folded = weights.reshape(rows, groups, each * span, -1).to(self._products)
        mixed = (folded @ values.to(self._products).transpose(1, 2)).float()
        mixed = mixed.view(rows, groups, each, span, -1).permute(0, 3, 1, 2, 4)
        return mixed.reshape(rows, span, groups * each, -1)

    def _behind_attention(self, weights: Weights, hidden: Tensor, mixed: Tensor) -> Tensor:
        """Finish a layer: the attention's output, then the dense MLP beside the experts."""
        attended = self._product(mixed, weights["self_attn.o_proj.weight"])
        hidden = hidden + self._normalized(attended, weights["post_attention_layernorm.weight"])
        dense = self._normalized(hidden, weights["pre_feedforward_layernorm.weight"])
        dense = self._gated(dense, weights, "mlp.")
        dense = self._normalized(dense, weights["post_feedforward_layernorm_1.weight"])
        sparse = self._normalized(
            self._mixture(weights, hidden), weights["post_feedforward_layernorm_2.weight"]
        )
        return hidden + self._normalized(
            dense + sparse, weights["post_feedforward_layernorm.weight"]
        )

    def _mixture(self, weights: Weights, hidden: Tensor) -> Tensor:
        """Run all experts as one product, and weigh them. The router weighs most of them 0."""
        routed = self._normalized(hidden) * (weights["router.scale"] / self._scale)
        shares = softmax(linear(routed, weights["router.proj.weight"]), -1)
        chosen, which = shares.topk(self._experts, dim=-1)
        chosen = chosen / chosen.sum(-1, keepdim=True)
        gates = torch.zeros_like(shares).scatter(-1, which, chosen)
        gates = gates * weights["router.per_expert_scale"]
        entering, leaving = weights["experts.gate_up_proj"], weights["experts.down_proj"]
        experts, _, size = entering.shape
        inner = self._normalized(hidden, weights["pre_feedforward_layernorm_2.weight"])
        inner = self._product(inner, entering.reshape(-1, size))
        gate, up = inner.view(*hidden.shape[:-1], experts, 2, -1).unbind(-2)
        active = gelu(gate, approximate="tanh") * up * gates[..., None]
        return self._product(active.flatten(-2), leaving.permute(1, 0, 2).reshape(size, -1))

    def _gated(self, hidden: Tensor, weights: Weights, lead: str) -> Tensor:
        gate = gelu(self._product(hidden, weights[f"{lead}gate_proj.weight"]), approximate="tanh")
        up = self._product(hidden, weights[f"{lead}up_proj.weight"])
        return self._product(gate * up, weights[f"{lead}down_proj.weight"])

    def _product(self, left: Tensor, weight: Tensor) -> Tensor:
        return linear(left.to(self._products), weight.to(self._products)).float()

    def _normalized(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        normalized: Tensor = _Normalized.apply(x, self._eps)  # type: ignore[no-untyped-call]
        return normalized if gain is None else normalized * gain

    def _angles(self, places: Tensor) -> dict[str, Angles]:
        """Compute cosines and sines [B, S, 1, D] of both kinds of layers."""
        like = torch.zeros(1)
        found = {}
        for kind in dict.fromkeys(self._types):
            cosines, sines = self._rotary(like, places, kind)
            found[kind] = (cosines.unsqueeze(2), sines.unsqueeze(2))
        return found


def _below(weights: Mapping[str, Tensor], lead: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(lead): weight for name, weight in weights.items() if name.startswith(lead)
    }


def _mask(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape).masked_fill(~seen, _UNSEEN)


def _rotated(x: Tensor, angles: Angles) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * angles[0] + torch.cat((-second, first), -1) * angles[1]
