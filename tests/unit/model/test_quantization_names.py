"""What `/v1/models` says of an engine's weights, from the profile that the engine writes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from types import ModuleType
from typing import Any, Final, get_args

import pytest

from piecework.client.gateway.formats.models import model_entry, stored_as
from piecework.client.jobs.output_rates import OutputRate
from piecework.client.journal.records import Memories
from piecework_model import precision
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.layers import packed_kernels, quantization
from piecework_model.layers.quantization import Codec, Recipe
from piecework_model.machine.probe import engine_profile, probe, short_profile
from piecework_protocol.types import Timestamp
from tests.support.chain.fake_chain import TOKEN_INFO
from tests.support.market.offers import model, offer

IN_ROUTERS_WORDS: Final = {"float32": "fp32", "bfloat16": "bf16", "fp8": "fp8", "int4": "int4"}
"""By the operator's precision, as OpenRouter's `quantization` spells it."""

RATES: Final = partial(OutputRate.of, memories=Memories(), now=Timestamp(1_800_000_000))


def codecs(bits: str) -> Iterator[Codec]:
    """Every format of the engine whose name begins with these bits, in every size of group."""
    for module in (quantization, packed_kernels):
        for kind in _formats(module):
            takes = inspect.signature(kind).parameters
            for group in precision.INT4_GROUPS:
                given = {"group": group, "device_type": "cuda"}
                codec = kind(**{name: given[name] for name in takes})
                if codec.name.startswith(bits):
                    yield codec


def _formats(module: ModuleType) -> list[Any]:
    """The classes of a module that pack weights."""
    return [
        found
        for found in vars(module).values()
        if inspect.isclass(found)
        and found.__module__ == module.__name__
        and {"pack", "matmul", "name"} <= vars(found).keys()
        and not getattr(found, "_is_protocol", False)
    ]


def test_every_format_of_the_engine_belongs_to_a_precision() -> None:
    known = {codec.name for bits in ("fp8", "int4") for codec in codecs(bits)}
    assert known == {codec.name for codec in codecs("")}
    assert {"fp8", "fp8-scaled-mm", "int4-g64", "int4-tiles-g64"} <= known


def packings(asked: str) -> list[str]:
    """Every `quantization` that a model of this precision can be loaded with."""
    if asked in get_args(precision.Dtype):
        return ["none"]
    return sorted({Recipe(a, b).name for a, b in product(codecs("fp8"), codecs(asked))})


@pytest.mark.parametrize("asked", precision.PRECISIONS)
def test_each_precision_has_the_name_that_routers_know(bundled: LoadedModel, asked: str) -> None:
    dtypes = [asked] if asked in get_args(precision.Dtype) else get_args(precision.Dtype)
    for dtype, packing in product(dtypes, packings(asked)):
        loaded = replace(bundled, dtype=dtype, quantization=packing)
        profile = short_profile(engine_profile(loaded, probe(), "fused.fused.tiled"))
        line = model("tale").replace(profile=profile)
        served = [offer("one", models=(line,)).offer]
        entry = model_entry("tale", served, RATES, TOKEN_INFO)
        assert entry is not None and entry["quantization"] == IN_ROUTERS_WORDS[asked], profile


@pytest.mark.parametrize(
    "profile",
    [
        "vllm-0.32.0",
        "",
        "fake gpu",
        "card/build/bfloat16",
        "card/build/float64/none/pure",
        "card/build/bfloat16/int2-g64+fp8/pure",
        "bfloat16/fp8/int4/none",
    ],
)
def test_a_profile_that_says_no_known_format_is_unknown(profile: str) -> None:
    assert stored_as(profile) == "unknown"
