"""The quality bench: a model agrees with itself, and not with a damaged one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.agreement import Observer, Tally
from bench.checkpoints import mid_config
from bench.precision import VARIANTS, compared, tiny_requests
from piecework_model.checkpoint.dimensions import dimensions, published_tensors
from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.checkpoint.manifest import bundled_checkpoint_path

torch.set_num_threads(1)
VARIANT = {variant.name: variant for variant in VARIANTS}


@pytest.fixture(scope="module")
def whole() -> LoadedModel:
    return load(device="cpu", dtype="float32")


def figures(whole: LoadedModel, other: torch.nn.Module) -> dict[str, float]:
    request = replace(tiny_requests(whole, 1)[0], max_steps=4)
    recorded = Observer(whole.model, whole.limits).record(request)
    assert [len(canvas.steps) for canvas in recorded] == [4, 4]
    return compared(other, whole.limits, [recorded]).figures()


def test_a_model_agrees_with_itself_at_every_step(whole: LoadedModel) -> None:
    found = figures(whole, whole.model)
    assert found == {
        "steps": 8,
        "argmax_equal": 1.0,
        "accepted_equal": 1.0,
        "exact_steps": 1.0,
        "entropy_difference": 0.0,
    }


def test_each_precision_agrees_less_than_the_one_before(whole: LoadedModel) -> None:
    shares = [
        figures(whole, VARIANT[name].load(bundled_checkpoint_path()))
        for name in ("bfloat16", "fp8", "int4-g64 experts and linears")
    ]
    equal = [found["argmax_equal"] for found in shares]
    different = [found["entropy_difference"] for found in shares]
    assert 1.0 >= equal[0] > equal[1] > equal[2] > 0.5
    assert 0.0 < different[0] < different[1] < different[2]


def test_no_steps_are_no_agreement_and_no_division() -> None:
    assert Tally().figures()["argmax_equal"] == 0.0


def test_the_mid_size_checkpoint_has_everything_that_the_released_one_has() -> None:
    config = mid_config()
    text = config.text_config
    assert (config.canvas_length, text.sliding_window, text.vocab_size) == (64, 128, 4096)
    assert (text.num_experts, text.top_k_experts) == (8, 2)
    assert set(text.layer_types) == {"sliding_attention", "full_attention"}
    assert text.max_position_embeddings > 3 * text.sliding_window
    of = dimensions(config.to_dict(), Path("config.json"))
    assert sum(math.prod(shape) for _, shape in published_tensors(of)) == pytest.approx(
        72.8e6, rel=0.01
    )
