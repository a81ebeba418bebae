"""One pass of DiffusionGemma over the tokens of many sequences, each against its own cache.

Encoder and decoder of the published model are one stack of layers with tied weights. Only
`layer_scalar` differs between the two. So chunks that are prefilled causally and canvases that are
denoised can share a pass. Every projection sees all tokens of all sequences as one matrix [T, H].
Attention runs sequence by sequence. In each layer the chunks write their keys and values before any
token reads, so a canvas may be denoised in the very pass that commits the canvas before it.

The order of operations is that of `modeling_diffusion_gemma.py` in transformers 5.23, whose modules
and weights these are. With matrix products that do not depend on the number of rows
(layers/invariance.py), a token's result is the same bit for bit whatever shares the pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DiffusionGemmaForBlockDiffusion

from piecework_model import limits
from piecework_model.bounds import kept_angle_bytes
from piecework_model.elementwise import by_rows
from piecework_model.fast_paths import FastPath
from piecework_model.layers.attention import attend, attend_each, why_device_is_unfused
from piecework_model.layers.cache import SequenceCache
from piecework_model.layers.graphs import (
    CudaRecorder,
    EagerPieceRunner,
    GraphPieceRunner,
    PieceRunner,
    Tensors,
)
from piecework_model.layers.invariance import Projection
from piecework_model.layers.moe import Moe
from piecework_model.layers.moe_backends import MoeBackend, moe_for
from piecework_model.layers.projections import Products, Projections

Blocks = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class CanvasesSegment:
    """Several canvases behind the same committed tokens in a pass. None sees another, and the cache
    stays as it is.

    start: where the first of them is in the batch. size: tokens of each.
    """

    cache: SequenceCache
    start: int
    canvases: int
    size: int

    @property
    def tokens(self) -> int:
        return self.canvases * self.size

    @property
    def places(self) -> list[tuple[int, int]]:
        """Absolute position of the first token and number of tokens, of each canvas."""
        return [(self.cache.length, self.size)] * self.canvases

    def groups(self, most: int) -> Iterator[slice]:
        """Yield where in the batch canvases are that see at most `most` tokens in all, or one."""
        width = max(1, most // (self.cache.length + self.size)) * self.size
        end = self.start + self.tokens
        for start in range(self.start, end, width):
            yield slice(start, min(end, start + width))


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one sequence in a pass.

    start, tokens: where they are in the batch, and how many. offset: their distance, in tokens,
    behind the sequence's committed ones. blocks: spans of a causal segment, from its first token
    on, whose tokens see each other: images.
    """

    cache: SequenceCache
    start: int
    tokens: int
    offset: int
    causal: bool
    blocks: Blocks = ()

    @property
    def span(self) -> slice:
        return slice(self.start, self.start + self.tokens)

    @property
    def places(self) -> list[tuple[int, int]]:
        """Absolute position of the first token, and number of tokens."""
        return [(self.cache.length + self.offset, self.tokens)]


AnySegment = Segment | CanvasesSegment


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's modules in the order of their use, with the projections that run them."""

    kind: str
    heads: int
    head_dim: int
    window: int
    attention: Any
    decoder: Any
    qkv: Projections  # without v where the values are the keys
    o: Projection
    gate_up: Projections
    down: Projection
    route: Projection
    top_k: int
    moe: MoeBackend
    canvas_scalar: Tensor
    causal_scalar: Tensor


class Backbone:
    """The stack of one loaded model. It holds no state of any sequence."""

    def __init__(
        self,
        model: DiffusionGemmaForBlockDiffusion,
        products: Products,
        *,
        pieces: PieceRunner | None = None,
        mask_bytes: int = limits.KEPT_MASK_BYTES,
    ) -> None:
        """Prepare the projections and the experts.

        products: how theirs are made. pieces: runs the parts of a step that come again. If not
        given, graphs record them where they can. mask_bytes: of attention masks that are kept from
        one pass to the next.
        """
        decoder, text = model.model.decoder, model.config.text_config
        self._decoder: Any = decoder
        self._eps: float = text.rms_norm_eps
        self._hidden: int = text.hidden_size
        encoder = model.model.encoder.language_model
        self._layers = [
            _layer(text, kind, decoding, encoding, products)
            for kind, decoding, encoding in zip(
                text.layer_types, decoder.layers, encoder.layers, strict=True
            )
        ]
        fused = all(layer.moe.name == "fused" for layer in self._layers)
        recordable = fused and model.device.type == "cuda"  # other moe_name count on the host
        usual = GraphPieceRunner(CudaRecorder(), limits.GRAPH_BYTES) if recordable else _PLAIN
        self._pieces: PieceRunner = pieces or usual
        self._masks: dict[tuple[int, int, int, Blocks], Tensor] = {}
        self._mask_bytes = mask_bytes
        self._rotated: tuple[list[tuple[int, int]], dict[str, Tensors]] | None = None
        self._most_context: int = text.max_position_embeddings
        self._known_angles: dict[tuple[int, int], dict[str, Tensors]] = {}
        self._angle_bytes = 0  # of the known ones
        conditioning = decoder.self_conditioning
        self._condition_gate_up = products.of_modules(
            [conditioning.gate_proj, conditioning.up_proj]
        )
        self._condition_down = products.of_module(conditioning.down_proj)

    @property
    def moe_name(self) -> str:
        """What runs the experts, for the engine profile."""
        return "+".join(sorted({layer.moe.name for layer in self._layers}))

    def fast_paths(self) -> list[FastPath]:
        """Say of attention, experts and recordings why they are not fast, each in one line."""
        like: Tensor = self._decoder.embed_tokens.weight
        shapes = {
            (layer.heads, layer.attention.k_proj.out_features // layer.head_dim, layer.head_dim)
            for layer in self._layers
        }
        unfused = (why_device_is_unfused(*shape, like.device, like.dtype) for shape in shapes)
        return [
            FastPath("attention", next(filter(None, unfused), "")),
            FastPath("experts", next((x.moe.reason for x in self._layers if x.moe.reason), "")),
            FastPath("recorded steps", self._pieces.reason),
        ]

    def record(self, canvases: Sequence[int], canvas_tokens: int) -> None:
        """Record the pieces of steps of so many canvases, where they can be recorded.

        The steps are of zeros and belong to no sequence.
        """
        if isinstance(self._pieces, EagerPieceRunner):
            return
        like: Tensor = self._decoder.embed_tokens.weight
        with self._pieces.recording():
            for count in sorted(set(canvases), reverse=True):
                tokens = count * canvas_tokens
                self.run(like.new_zeros((tokens, self._hidden)), (), tokens)

    def release(self, *, recordings: bool) -> None:
        """Free what only saves work: masks, rotations, and `recordings` too if told so."""
        self._masks.clear()
        self._rotated = None
        self._forget_angles()
        if recordings:
            self._pieces.forget()

    def embed(self, ids: Tensor) -> Tensor:
        """Look up token embeddings [T, H] of ids [T]."""
        embedded: Tensor = self._decoder.embed_tokens(ids)
        return embedded

    def condition(self, embedded: Tensor, soft: Tensor) -> Tensor:
        """Condition the embeddings [T, H] of canvas tokens on the soft embeddings [T, H] of the
        step before.
        """
        module = self._decoder.self_conditioning
        normed = functional.rms_norm(soft, (self._hidden,), module.pre_norm.weight, self._eps)
        gate, up = self._condition_gate_up(normed)
        signal = self._condition_down(by_rows(module.act_fn, gate) * up)
        return functional.rms_norm(embedded + signal, (self._hidden,), None, self._eps)

    def run(self, hidden: Tensor, segments: Sequence[AnySegment], canvas_tokens: int) -> Tensor:
        """Run the stack over hidden [T, H]. The first `canvas_tokens` of the T are of canvases, the
        others causal.

        Returns the final normed states [canvas_tokens, H] of the canvases. What the causal segments
        add to their caches is written but not committed.
        """
        rotary = self._rotary(segments, hidden)
        # The shape of a pass with prefill may never come back. Only what comes again is recorded.
        pieces = self._pieces if canvas_tokens == hidden.shape[0] else _PLAIN
        queries, keys, values = pieces.run(
            "enter", self._enter, hidden, *rotary[self._layers[0].kind]
        )
        for index, following in enumerate(self._layers[1:]):
            attended = self._attend(index, queries, keys, values, segments)
            hidden, queries, keys, values = pieces.run(
                f"cross-{index}",
                partial(self._cross, index, canvas_tokens),
                *(hidden, attended, *rotary[following.kind]),
            )
        attended = self._attend(len(self._layers) - 1, queries, keys, values, segments)
        (states,) = pieces.run("leave", partial(self._leave, canvas_tokens), hidden, attended)
        if sum(mask.nbytes for mask in self._masks.values()) > self._mask_bytes:
            self._masks.clear()  # every layer has used those of this pass
        return states

    def _enter(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensors:
        """Compute what the first attention needs of hidden [T, H]."""
        return self._project(self._layers[0], hidden, (cos, sin))

    def _cross(self, index: int, canvas_tokens: int, *tensors: Tensor) -> Tensors:
        """Go from the attention of layer `index` to the next one's.

        tensors: hidden [T, H], the attention's output, and the next layer's rotation. Returns the
        new hidden, queries, keys and values.
        """
        hidden, attended, cos, sin = tensors
        hidden = self._finish(self._layers[index], hidden, attended, canvas_tokens)
        return hidden, *self._project(self._layers[index + 1], hidden, (cos, sin))

    def _leave(self, canvas_tokens: int, hidden: Tensor, attended: Tensor) -> Tensors:
        """Go from the last attention to the final states [canvas_tokens, H]."""
        hidden = self._finish(self._layers[-1], hidden, attended, canvas_tokens)
        return (self._norm(hidden[:canvas_tokens], self._decoder.norm),)

    def _finish(
        self, layer: _Layer, hidden: Tensor, attended: Tensor, canvas_tokens: int
    ) -> Tensor:
        """Apply the rest of a layer to the output [T, heads * dim] of its attention."""
        hidden = hidden + self._norm(layer.o(attended), layer.decoder.post_attention_layernorm)
        hidden = hidden + self._feed_forward(layer, hidden)
        hidden[:canvas_tokens] *= layer.canvas_scalar
        if canvas_tokens < hidden.shape[0]:
            hidden[canvas_tokens:] *= layer.causal_scalar
        return hidden

    def _norm(self, hidden: Tensor, norm: Any) -> Tensor:
        return functional.rms_norm(hidden, (self._hidden,), norm.weight, self._eps)

    def _rotary(self, segments: Sequence[AnySegment], hidden: Tensor) -> dict[str, Tensors]:
        """Compute cosines and sines [T, 1, dim] of the tokens' positions, for each kind of layer.

        The steps of a canvas have the positions of the step before, so the last result is kept.
        """
        places = [place for segment in segments for place in segment.places]
        missing = hidden.shape[0] - sum(tokens for _, tokens in places)
        places += [(0, missing)] * (missing > 0)  # padding
        if self._rotated is None or self._rotated[0] != places:
            parts = [self._angles(hidden, *place) for place in places]
            made: dict[str, Tensors] = {
                kind: (
                    torch.cat([part[kind][0] for part in parts]),
                    torch.cat([part[kind][1] for part in parts]),
                )
                for kind in self._decoder.unique_layer_types
            }
            self._rotated = places, made
        return self._rotated[1]

    def _angles(self, hidden: Tensor, position: int, tokens: int) -> dict[str, Tensors]:
        """Compute the same for one segment, whose shape its sequence alone decides
        (elementwise.py).
        """
        known = self._known_angles.get((position, tokens))
        if known is not None:
            return known
        where = torch.arange(position, position + tokens, dtype=torch.int32, device=hidden.device)
        made: dict[str, Tensors] = {
            kind: tuple(
                part[0][:, None]
                for part in self._decoder.rotary_emb(hidden[None], where[None], kind)
            )
            for kind in self._decoder.unique_layer_types
        }
        size = sum(part.nbytes for parts in made.values() for part in parts)
        if self._angle_bytes + size > kept_angle_bytes(self._most_context, size // tokens):
            self._forget_angles()
        self._known_angles[position, tokens] = made
        self._angle_bytes += size
        return made

    def _forget_angles(self) -> None:
        self._known_angles.clear()
        self._angle_bytes = 0

    def _project(self, layer: _Layer, hidden: Tensor, rotary: Tensors) -> Tensors:
        """Compute queries [T, heads, dim], keys and values [T, kv heads, dim], normed and
        rotated.
        """
        module, tokens, dim = layer.attention, hidden.shape[0], layer.head_dim
        hidden = self._norm(hidden, layer.decoder.input_layernorm)
        made = [part.view(tokens, -1, dim) for part in layer.qkv(hidden)]
        raw, values = made[1], made[-1]
        queries = _rotate(
            functional.rms_norm(made[0], (dim,), module.q_norm.weight, self._eps), rotary
        )
        keys = _rotate(functional.rms_norm(raw, (dim,), module.k_norm.weight, self._eps), rotary)
        return queries, keys, functional.rms_norm(values, (dim,), None, self._eps)

    def _attend(
        self,
        index: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        segments: Sequence[AnySegment],
    ) -> Tensor:
        """Attend, for every segment, over its sequence's cache and itself. Returns [T, heads *
        dim].
        """
        tokens, layer = queries.shape[0], self._layers[index]
        padded = sum(segment.tokens for segment in segments) < tokens
        attended = torch.zeros_like(queries) if padded else torch.empty_like(queries)
        for segment in segments:
            if isinstance(segment, Segment):
                segment.cache.write(index, segment.offset, keys[segment.span], values[segment.span])
        for segment in segments:
            if isinstance(segment, Segment):
                attended[segment.span] = self._attend_one(index, queries[segment.span], segment)
            else:
                for some in segment.groups(limits.COPIED_CACHE_TOKENS):
                    seen = segment.cache.view_behind(index, keys[some], values[some], segment.size)
                    asking = queries[some].view(-1, segment.size, *queries.shape[1:])
                    attended[some] = attend_each(asking, *seen).flatten(0, 1)
        return attended.view(tokens, layer.heads * layer.head_dim)

    def _attend_one(self, index: int, queries: Tensor, segment: Segment) -> Tensor:
        keys, values, before = segment.cache.view(index, segment.offset, segment.tokens)
        mask: Tensor | None = None
        if segment.causal:
            window = self._layers[index].window
            mask = self._mask(before, segment.tokens, window, segment.blocks, queries.device)
        return attend(queries, keys, values, mask)

    def _mask(
        self, before: int, tokens: int, window: int, blocks: Blocks, device: torch.device
    ) -> Tensor:
        """Make the mask [tokens, before + tokens], bool: which keys each of `tokens` queries
        sees. Within a block each sees all, even beyond the window.
        """
        key = (before, tokens, window, blocks)
        mask = self._masks.get(key)
        if mask is None:
            query = torch.arange(before, before + tokens, device=device)[:, None]
            seen = torch.arange(before + tokens, device=device)[None]
            mask = seen <= query
            if window:
                mask &= seen > query - window
            for start, end in blocks:
                mask[start:end, before + start : before + end] = True
            self._masks[key] = mask
        return mask

    def _feed_forward(self, layer: _Layer, hidden: Tensor) -> Tensor:
        """Add the dense MLP and the mixture of experts, [T, H]."""
        module = layer.decoder
        dense = self._norm(hidden, module.pre_feedforward_layernorm)
        gate, up = layer.gate_up(dense)
        dense = layer.down(by_rows(module.mlp.act_fn, gate) * up)
        dense = self._norm(dense, module.post_feedforward_layernorm_1)
        weights, chosen = _routed(layer, hidden)
        mixed = layer.moe.run(
            self._norm(hidden, module.pre_feedforward_layernorm_2), chosen, weights
        )
        mixed = self._norm(mixed, module.post_feedforward_layernorm_2)
        return self._norm(dense + mixed, module.post_feedforward_layernorm)


_PLAIN: Final = EagerPieceRunner()


def _routed(layer: _Layer, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Choose each token's experts as transformers' router does: weights [T, k] float32, ids
    [T, k].
    """
    router = layer.decoder.router
    states = router.norm(hidden) * router.scale * router.scalar_root_size
    probabilities = functional.softmax(layer.route(states), dim=-1, dtype=torch.float32)
    weights, chosen = torch.topk(probabilities, k=layer.top_k, dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True) * router.per_expert_scale[chosen], chosen


def _rotate(states: Tensor, rotary: Tensors) -> Tensor:
    """Apply rotary position embedding to [T, heads, dim] (arXiv 2104.09864), with halves rotated as
    in transformers.
    """
    cos, sin = rotary
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return (states * cos) + (turned * sin)


def _layer(text: Any, kind: str, decoder: Any, encoder: Any, products: Products) -> _Layer:
    attention, mlp = decoder.self_attn, decoder.mlp
    return _Layer(
        kind=kind,
        heads=text.num_attention_heads,
        head_dim=attention.head_dim,
        window=text.sliding_window if kind == "sliding_attention" else 0,
        attention=attention,
        decoder=decoder,
        qkv=products.of_modules(
            [
                part
                for part in (attention.q_proj, attention.k_proj, attention.v_proj)
                if part is not None
            ]
        ),
        o=products.of_module(attention.o_proj),
        gate_up=products.of_modules([mlp.gate_proj, mlp.up_proj]),
        down=products.of_module(mlp.down_proj),
        route=products.of_module(decoder.router.proj),
        top_k=text.top_k_experts,
        moe=moe_for(
            decoder.experts,
            Moe(decoder.experts, products),
            text.top_k_experts,
            attention.q_norm.weight.device,
            attention.q_norm.weight.dtype,
        ),
        canvas_scalar=decoder.layer_scalar,
        causal_scalar=encoder.layer_scalar,
    )
