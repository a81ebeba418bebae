"""Images as the backbone sees them: the vision tower and its projection, one image at a time.

The modules are those of transformers. A tower pass has the same shape for every image, because the
patches are padded to the most that one image may have. So the features of an image are the same bit
for bit whatever else the engine does. Both executors call this.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion

from piecework_model.bounds import ImageLimits
from piecework_model.requests import PromptImage


class ImageEncoder:
    """The tower of one loaded model. It holds no state of any sequence."""

    def __init__(self, model: DiffusionGemmaForBlockDiffusion, limits: ImageLimits | None) -> None:
        self._encoder = model.model.encoder
        self._device: torch.device = model.device
        self._limits = limits
        self.sees_both_ways: bool = model.config.text_config.use_bidirectional_attention == "vision"
        """Whether the tokens of an image see each other. If not, each sees those before it."""

    def put(self, embedded: Tensor, images: tuple[PromptImage, ...]) -> Tensor:
        """Put the features of `images` into the embeddings [T, H] of their chunk."""
        for image in images:
            embedded[image.start : image.start + image.tokens] = self.features(image).to(embedded)
        return embedded

    def blocks(self, images: tuple[PromptImage, ...]) -> tuple[tuple[int, int], ...]:
        """List the spans of a chunk whose tokens see each other."""
        if not self.sees_both_ways:
            return ()
        return tuple((image.start, image.start + image.tokens) for image in images)

    def features(self, image: PromptImage) -> Tensor:
        """Compute what stands for an image in the prompt, [tokens, H]."""
        if self._limits is None:
            raise ValueError("this model takes no images")
        pixels, positions = _padded(image, self._limits)
        made = self._encoder.get_image_features(
            torch.from_numpy(pixels)[None].to(self._device),
            torch.from_numpy(positions)[None].to(self._device),
            return_dict=True,
        )
        features: Tensor = made.pooler_output
        return features


def _padded(image: PromptImage, limits: ImageLimits) -> tuple[np.ndarray, np.ndarray]:
    """Give the pixel values float32 [patches, values] and the positions int64 [patches, 2] of
    `most_patches` patches. Those behind the image's own are at position -1.
    """
    count = image.columns * image.rows
    own = np.frombuffer(image.patches, dtype=np.uint8).reshape(count, limits.patch_bytes)
    pixels = np.zeros((limits.most_patches, limits.patch_bytes), dtype=np.float32)
    pixels[:count] = (own.astype(np.float64) * limits.scale).astype(np.float32)
    positions = np.full((limits.most_patches, 2), -1, dtype=np.int64)
    positions[:count, 0] = np.tile(np.arange(image.columns), image.rows)
    positions[:count, 1] = np.repeat(np.arange(image.rows), image.columns)
    return pixels, positions
