"""The two halves of DiffusionGemma as plain functions of one sequence: causal prefill and
bidirectional denoising.

Modules and weights are those of transformers. The order of the calls is ours. On a CPU, products
are cut or filled up where their rows would be other sums (layers/invariance.py). Between steps this
keeps the soft embedding [C, H] where `generate` keeps the logits [C, V]. Both carry the same
information, and the embedding is smaller by a factor of V / H.

C = canvas size, V = vocabulary, H = hidden size. Sequences run one at a time, so every tensor has a
batch dimension of 1 in front.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from piecework_model.bounds import ImageLimits
from piecework_model.engine.scheduler import PrefillChunk
from piecework_model.layers.own_products import OwnProducts
from piecework_model.layers.vision import ImageEncoder


class Denoiser:
    """One loaded model. It holds no state of any sequence."""

    def __init__(
        self, model: DiffusionGemmaForBlockDiffusion, images: ImageLimits | None = None
    ) -> None:
        self._model = model
        self._images = ImageEncoder(model, images)
        self._encoder = model.model.encoder
        self._decoder = model.model.decoder
        self._text_config = model.config.text_config
        self.device: torch.device = model.device
        self.dtype: torch.dtype = self._decoder.embed_tokens.weight.dtype
        self.cap: float = model.final_logit_softcapping
        self._products = OwnProducts(model)

    def new_cache(self) -> DynamicCache:
        """Make an empty KV cache for one sequence. Sliding layers keep their last window - 1
        tokens.
        """
        return DynamicCache(config=self._text_config)

    def prefill(self, cache: DynamicCache, chunk: PrefillChunk) -> None:
        """Append a chunk of the prompt, or a canvas, to a KV cache with one causal pass.

        The tokens of an image see each other.
        """
        start = cache.get_seq_length()
        input_ids = torch.tensor(chunk.ids, dtype=torch.int64, device=self.device)
        embedded = self._images.put(self._encoder.get_input_embeddings()(input_ids), chunk.images)
        end = start + len(chunk)
        positions = torch.arange(start, end, dtype=torch.int32, device=self.device)[None]
        # 1 where an image stands. What is in the cache already holds no part of one of these.
        kinds = torch.zeros((1, end), dtype=torch.int64, device=self.device)
        for image in chunk.images:
            kinds[0, start + image.start : start + image.start + image.tokens] = 1
        masks = self._encoder.create_masks_for_generate(
            config=self._model.config,
            inputs_embeds=torch.empty((1, len(chunk), 0), dtype=self.dtype, device=self.device),
            attention_mask=torch.ones((1, end), dtype=torch.bool, device=self.device),
            past_key_values=cache,
            position_ids=positions,
            mm_token_type_ids=kinds if chunk.images else None,
        )
        with self._products:
            self._encoder(
                inputs_embeds=embedded[None],
                attention_mask=masks,
                past_key_values=cache,
                position_ids=positions,
            )

    def raw_logits(self, cache: DynamicCache, canvas: Tensor, soft: Tensor | None) -> Tensor:
        """Compute the last layer's output [C, V] for a canvas [C], before the cap.

        cache: the sequence's, which is only read. soft: [C, H], the soft embedding of the previous
        step, or None at step 0.
        """
        decoder = self._decoder
        embedded = decoder.embed_tokens(canvas[None])  # [1, C, H]
        conditioning = torch.zeros_like(embedded) if soft is None else soft[None]
        with self._products:
            return self._last_layer(cache, embedded, conditioning)

    def _last_layer(self, cache: DynamicCache, embedded: Tensor, conditioning: Tensor) -> Tensor:
        decoder = self._decoder
        hidden = decoder.self_conditioning(embedded, conditioning)
        start = cache.get_seq_length()
        end = start + embedded.shape[1]
        positions = torch.arange(start, end, dtype=torch.int32, device=self.device)[None]
        rotary = {
            kind: decoder.rotary_emb(hidden, positions, kind) for kind in decoder.unique_layer_types
        }
        for kind, layer in zip(self._text_config.layer_types, decoder.layers, strict=True):
            # No mask: a canvas sees all of the cache and all of itself (the cache itself does the
            # windowing).
            hidden = layer(
                hidden,
                position_embeddings=rotary[kind],
                attention_mask=None,
                position_ids=positions,
                past_key_values=cache,
            )
        raw: Tensor = self._model.lm_head(decoder.norm(hidden))
        return raw[0]

    def soft_embedding(self, probabilities: Tensor) -> Tensor:
        """Compute the soft embedding [C, H] that conditions the next step.

        It is probabilities [C, V] @ embeddings * sqrt(H).
        """
        scale: Tensor = self._decoder.embed_tokens.embed_scale.to(self.dtype)
        return self._products.soft_embeddings(probabilities) * scale
