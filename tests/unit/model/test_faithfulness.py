"""Our loop against transformers' own `generate`: with the same random numbers, the same canvases,
step by step (tests/support/model/generate_runs.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DiffusionGemmaForBlockDiffusion

from bench.checkpoints import mid_config
from piecework_model.bounds import ModelLimits
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.reference import ReferenceExecutor
from piecework_model.requests import GenerationRequest
from piecework_model.sampling import philox
from piecework_model.sampling.philox import Moment
from piecework_model.training.architecture import build_config
from tests.support.model.generate_runs import our_canvases, reference_canvases

EXECUTORS = [ReferenceExecutor, BatchedExecutor]


def request(prompt_ids: tuple[int, ...], **changes: Any) -> GenerationRequest:
    fields: dict[str, Any] = {
        "request_id": "faithful",
        "prompt_ids": prompt_ids,
        "seed": 11,
        "max_tokens": 96,
        "max_steps": 12,
        "temperature_start": 0.8,
        "temperature_end": 0.4,
        "entropy_bound": 0.1,
        "confidence_threshold": 0.005,
        "stability_steps": 1,
        "canvas_limit": 99,
    }
    return GenerationRequest(**{**fields, **changes})


@pytest.fixture(scope="module")
def random_model() -> DiffusionGemmaForBlockDiffusion:
    """Random weights, large enough that logits are peaked; experts, sliding and full attention, as
    in the bundle. Such a model amplifies the last bit, so canvases are equal only if everything
    before is. In bfloat16 fewer sums show in what is rounded.
    """
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(3)
    config = build_config(vocab_size=300)
    config.text_config.initializer_range = config.initializer_range = 0.3
    model = DiffusionGemmaForBlockDiffusion(config).eval().requires_grad_(False)
    torch.random.set_rng_state(generator_state)
    model.set_experts_implementation("eager")
    return model.bfloat16()


@pytest.mark.parametrize("make", EXECUTORS)
@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_the_bundled_model_gives_the_canvases_of_generate_step_by_step(
    bundled: LoadedModel, seed: int, make: type[ReferenceExecutor | BatchedExecutor]
) -> None:
    prompt = bundled.tokenizer.encode_template(
        "<bos><|turn>user\nTell me a story about an owl.<turn|>\n<|turn>model\n"
    )
    wanted = request(prompt, seed=seed, max_steps=48, max_tokens=160)
    theirs = reference_canvases(bundled.model, wanted, bundled.eos_ids)
    executor = make(bundled.model, bundled.limits)
    assert our_canvases(executor, bundled.limits, wanted, bundled.eos_ids) == theirs


@pytest.mark.parametrize("make", EXECUTORS)
def test_a_prompt_that_is_prefilled_in_chunks_gives_the_canvases_of_one_pass(
    bundled: LoadedModel, make: type[ReferenceExecutor | BatchedExecutor]
) -> None:
    """Cutting the prompt moves last bits only; a trained model is steady enough not to care."""
    story = "Tell me a story about an owl, a bell and a hill. " * 12
    prompt = bundled.tokenizer.encode_template(f"<bos><|turn>user\n{story}<turn|>\n<|turn>model\n")
    assert len(prompt) > 2 * bundled.limits.chunk_tokens
    wanted = request(prompt, max_steps=48, max_tokens=64)
    theirs = reference_canvases(bundled.model, wanted, bundled.eos_ids)
    executor = make(bundled.model, bundled.limits)
    assert our_canvases(executor, bundled.limits, wanted, bundled.eos_ids) == theirs


@pytest.mark.parametrize("make", EXECUTORS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stability_steps": 0, "confidence_threshold": 100.0},
        {"stability_steps": 3, "confidence_threshold": 100.0, "entropy_bound": 40.0},
        {"temperature_start": 3.0, "temperature_end": 0.1, "entropy_bound": 5.0, "max_steps": 7},
    ],
)
@pytest.mark.parametrize(
    "prompt_length", [1, 40, 150, 330]
)  # the window is 64 tokens, so is a chunk
def test_random_weights_give_the_canvases_of_generate(
    random_model: DiffusionGemmaForBlockDiffusion,
    changes: dict[str, Any],
    prompt_length: int,
    make: type[ReferenceExecutor | BatchedExecutor],
) -> None:
    prompt = tuple(
        philox.initial_ids([Moment(prompt_length, 7, 0)], prompt_length, 300)[0].tolist()
    )
    limits = ModelLimits(max_context=1024, canvas_size=32, max_steps=48, vocab_size=300)
    wanted = request(prompt, **changes)
    theirs = reference_canvases(random_model, wanted, frozenset({1}), limits.chunk_tokens)
    assert our_canvases(make(random_model, limits), limits, wanted, frozenset({1})) == theirs
    assert sum(map(len, theirs)) > 1


@pytest.fixture(scope="module")
def mid_model() -> DiffusionGemmaForBlockDiffusion:
    """72.8 M parameters with random weights: 8 experts of which 2 work, windows of 128 tokens,
    canvases of 64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = DiffusionGemmaForBlockDiffusion(mid_config()).eval().requires_grad_(False)
    model.set_experts_implementation("eager")
    return model.bfloat16()


def test_a_mid_size_model_gives_the_canvases_of_generate_far_beyond_its_window(
    mid_model: DiffusionGemmaForBlockDiffusion,
) -> None:
    text = mid_model.config.text_config
    limits = ModelLimits(text.max_position_embeddings, 64, 48, text.vocab_size)
    assert text.sliding_window * 4 < 560
    prompt = tuple(philox.initial_ids([Moment(5, 7, 0)], 560, text.vocab_size)[0].tolist())
    wanted = request(prompt, max_tokens=128, max_steps=5, entropy_bound=2.0)
    theirs = reference_canvases(mid_model, wanted, frozenset({1}), limits.chunk_tokens)
    assert [len(steps) for steps in theirs] == [5, 5]
    assert (
        our_canvases(BatchedExecutor(mid_model, limits), limits, wanted, frozenset({1})) == theirs
    )


def test_what_the_published_format_ties_is_tied_after_loading(
    bundled: LoadedModel, tmp_path: Path
) -> None:
    model = bundled.model.model
    assert model.encoder.language_model.embed_tokens.weight is model.decoder.embed_tokens.weight
    assert bundled.model.lm_head.weight is model.decoder.embed_tokens.weight
    assert (
        model.encoder.language_model.layers[0].mlp.gate_proj.weight
        is model.decoder.layers[0].mlp.gate_proj.weight
    )
