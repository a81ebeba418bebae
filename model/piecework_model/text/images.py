"""Images through the checkpoint's own processor: from a file's bytes to patches of pixels.

The processor is the PIL backend of transformers' Gemma 4. It turns an image to RGB on white, and
resizes it so that its sides are whole tokens and it has at most the checkpoint's number of them.
The image keeps its proportions, as far as whole tokens allow. Before that, an image is turned as
its camera noted (EXIF), as transformers does with an image from a URL.

What comes out is a function of the bytes and of Pillow's version, which is a part of the engine
profile. A decoder reads one named format only. Pixels are bounded before anything is decoded, and
the tokens of all images are counted from their headers, so that nothing is decoded of a prompt that
does not fit.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from piecework_model import files, limits
from piecework_model.bounds import ImageLimits
from piecework_model.errors import CheckpointError, PromptError
from piecework_model.requests import PromptImage
from piecework_model.text.tokens import TextCodec
from piecework_protocol.conversation import IMAGE_TYPES, Image

PROCESSOR_FILES: Final = ("processor_config.json", "preprocessor_config.json")
"""Where a checkpoint says how it takes images. The first that is there counts."""
_FORMATS: Final = dict(zip(IMAGE_TYPES, ("PNG", "JPEG", "WEBP"), strict=True))
_FIXED: Final[Mapping[str, Any]] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": False,
    "do_convert_rgb": True,
}
"""What the published processors do. Another value makes pixels that this module does not make."""
_START_OF_SCAN: Final = b"\xff\xda"
"""Each one in the file's bytes counts. A decoder finds no scan without these two bytes."""
_TOKENS_OF: Final = (70, 140, 280, 560, 1120)
"""The most tokens of an image that the processor knows."""


class ImageError(PromptError):
    """An image cannot be shown to the model: it is broken, too large, animated or misnamed."""


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """How a checkpoint resizes images. Fields as in `ImageLimits`. resample: Pillow's number.

    The defaults are those of the published processor.
    """

    patch: int = 16
    pooling: int = 3
    most_tokens: int = 280
    scale: float = 1 / 255
    resample: int = 3


def find_settings(folder: Path, config: Mapping[str, Any]) -> ImageSettings | str:
    """Read how a checkpoint takes images, or say why it takes none. config: its config.json.

    Raises:
        CheckpointError: The processor's file is not JSON, or has values that cannot be.
    """
    path = next((folder / name for name in PROCESSOR_FILES if (folder / name).is_file()), None)
    if path is None:
        return f"the checkpoint has no {PROCESSOR_FILES[0]}"
    written = files.read_json(path)
    chosen = written.get("image_processor", written)
    if not isinstance(chosen, dict):
        raise CheckpointError(path, "image_processor is not an object")
    for name, value in _FIXED.items():
        if chosen.get(name, value) is not value:
            return f"{path.name}: {name} is not {value}"
    settings = _settings(chosen, path)
    tower = config.get("vision_config")
    tower = tower if isinstance(tower, dict) else {}
    if (tower.get("patch_size", 16), tower.get("pooling_kernel_size", 3)) != (
        settings.patch,
        settings.pooling,
    ):
        return f"{path.name} cuts other patches than the vision tower takes"
    if settings.most_tokens * settings.pooling > tower.get("position_embedding_size", 10_240):
        return "an image may be wider than the vision tower has positions"
    return settings


def _settings(chosen: Mapping[str, Any], path: Path) -> ImageSettings:
    usual = ImageSettings()

    def whole(name: str, default: int, most: int) -> int:
        value = chosen.get(name, default)
        if type(value) is not int or not 0 <= value <= most:
            raise CheckpointError(path, f"{name} is {value!r}")
        return value

    scale = chosen.get("rescale_factor", usual.scale)
    if not isinstance(scale, float) or not math.isfinite(scale):
        raise CheckpointError(path, f"rescale_factor is {scale!r}")
    settings = ImageSettings(
        patch=whole("patch_size", usual.patch, limits.MAX_PATCH_PIXELS),
        pooling=whole("pooling_kernel_size", usual.pooling, limits.MAX_POOLING),
        most_tokens=whole("max_soft_tokens", usual.most_tokens, _TOKENS_OF[-1]),
        scale=scale,
        resample=whole("resample", usual.resample, 5),
    )
    if settings.most_tokens not in _TOKENS_OF or not settings.patch or not settings.pooling:
        raise CheckpointError(path, "max_soft_tokens, patch_size or pooling_kernel_size is not one")
    return settings


@dataclass(frozen=True, slots=True)
class MeasuredImage:
    """An image whose header is read. opened: Pillow's. tokens: that it becomes in a prompt."""

    image: Image
    opened: Any
    tokens: int


class ImageProcessor:
    """How one checkpoint takes images.

    begin_id, end_id: the tokens that frame an image. limits: what the engine holds images to.
    """

    def __init__(self, settings: ImageSettings, begin_id: int, image_id: int, end_id: int) -> None:
        self.begin_id, self.end_id = begin_id, end_id
        self.limits = ImageLimits(
            image_id, settings.patch, settings.pooling, settings.most_tokens, settings.scale
        )
        self._resample = settings.resample

    def measure(self, images: Iterable[Image]) -> list[MeasuredImage]:
        """Read the headers of all images of a prompt. Nothing of their pixels is decoded.

        Raises:
            ImageError: A header cannot be read, or the images are out of bounds.
        """
        measured: list[MeasuredImage] = []
        pixels = tokens = 0
        for image in images:
            opened = _open(image)
            pixels += opened.size[0] * opened.size[1]
            if pixels > limits.MAX_PROMPT_PIXELS:
                raise ImageError(
                    f"the images have more than {limits.MAX_PROMPT_PIXELS} pixels together"
                )
            with _named(image):
                measured.append(MeasuredImage(image, opened, self._tokens(*opened.size)))
            tokens += measured[-1].tokens
            if tokens * self._token_bytes > limits.MAX_PROMPT_PATCH_BYTES:
                raise ImageError("the images are too many for their size")
        return measured

    def decode(self, measured: MeasuredImage) -> PromptImage:
        """Decode an image, resize it and cut it into patches. It starts at 0.

        Raises:
            ImageError: It cannot be decoded, or has another size than its header says.
        """
        with _named(measured.image):
            made = self._patches(_decode(measured.opened))
        if made.tokens != measured.tokens:
            raise ImageError("an image has another size than its header says")
        return made

    def _tokens(self, width: int, height: int) -> int:
        """Count the tokens of an image of so many pixels. It may lie on its side."""
        from transformers.models.gemma4.image_processing_pil_gemma4 import (
            get_aspect_ratio_preserving_size,
        )

        of = self.limits
        rows, columns = get_aspect_ratio_preserving_size(
            height=height,
            width=width,
            patch_size=of.patch,
            max_patches=of.most_tokens * of.pooling**2,
            pooling_kernel_size=of.pooling,
        )
        return int(rows * columns // (of.pooling * of.patch) ** 2)

    @property
    def _token_bytes(self) -> int:
        """Bytes of the patches of one token, in three colours."""
        return 3 * (self.limits.pooling * self.limits.patch) ** 2

    def _patches(self, pixels: Any) -> PromptImage:
        """Resize a decoded image and cut it into patches."""
        from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

        of = self.limits
        processor = Gemma4ImageProcessorPil(
            patch_size=of.patch,
            pooling_kernel_size=of.pooling,
            max_soft_tokens=of.most_tokens,
            resample=self._resample,
            do_rescale=False,  # bytes are small and exact, and layers/vision.py scales them
        )
        made = processor.preprocess(pixels, return_tensors="np")
        positions = made["image_position_ids"][0]
        own = positions[:, 0] >= 0
        columns, rows = (positions[own].max(axis=0) + 1).tolist()
        patches = np.ascontiguousarray(made["pixel_values"][0][own])
        if patches.dtype != np.uint8:
            raise ImageError("the image does not have eight bits a colour")
        tokens = int(made["num_soft_tokens_per_image"][0])
        return PromptImage(0, tokens, columns, rows, patches.tobytes())


def _open(image: Image) -> Any:
    """Read an image's header. Nothing of its pixels is decoded.

    Raises:
        ImageError: The bytes are not of the named format, or the image is out of bounds.
    """
    from PIL import Image as PillowImage

    kind = _FORMATS[image.media_type]
    if kind == "JPEG" and image.data.count(_START_OF_SCAN) > limits.MAX_JPEG_SCANS:
        raise ImageError(f"a JPEG has more than {limits.MAX_JPEG_SCANS} scans")
    with _named(image):
        opened = PillowImage.open(io.BytesIO(image.data), formats=[kind])
        # A photo of a camera may carry smaller copies of itself. They are not an animation.
        animated = kind != "JPEG" and getattr(opened, "is_animated", False)
    width, height = opened.size
    if max(width, height) > limits.MAX_IMAGE_SIDE:
        raise ImageError(
            f"an image has {width} x {height} pixels, at most {limits.MAX_IMAGE_SIDE} on a side "
            "are taken"
        )
    if width * height > limits.MAX_IMAGE_PIXELS:
        raise ImageError(
            f"an image has {width} x {height} pixels, at most {limits.MAX_IMAGE_PIXELS} are taken"
        )
    if animated:
        raise ImageError("an animated image is not taken")
    return opened


def _decode(opened: Any) -> Any:
    """Decode the pixels of an opened image, upright. Broken bytes make it fail in any way."""
    from PIL import ImageOps

    opened.load()
    return ImageOps.exif_transpose(opened)


@contextmanager
def _named(image: Image) -> Iterator[None]:
    """Turn what a decoder raises into an ImageError. Broken bytes make it fail in any way."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"an image cannot be read as {image.media_type}") from error


def find_processor(
    settings: ImageSettings, config: Mapping[str, Any], codec: TextCodec
) -> ImageProcessor | str:
    """Make the processor of a checkpoint, or say why it takes no images after all."""
    ids = [
        config.get(name, default)
        for name, default in (
            ("boi_token_id", 255_999),
            ("image_token_id", 258_880),
            ("eoi_token_id", 258_882),
        )
    ]
    if not all(type(id_) is int and id_ in codec.control_ids for id_ in ids) or len(set(ids)) < 3:
        return "the tokens of images are not control tokens of the tokenizer"
    return ImageProcessor(settings, *ids)
