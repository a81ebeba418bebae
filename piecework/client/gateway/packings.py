"""How the bodies of requests may be packed: as OpenAI's newer clients do it, too."""

from __future__ import annotations

from typing import Final

from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

from piecework.base.packing import PACKINGS, Packing, Packings, UnpackedStream

WINDOW_BITS: Final = 23
"""8 MiB of memory for one body, as RFC 8878 asks every decoder to give. A frame may want more."""


def _zstd() -> UnpackedStream:
    return ZstdDecompressor(options={DecompressionParameter.window_log_max: WINDOW_BITS})


BODY_PACKINGS: Final[Packings] = {**PACKINGS, "zstd": Packing(_zstd, ZstdError)}
