"""Our loop against transformers' own `generate`: with the same random numbers, the same canvases,
step by step.

`generate` draws from torch's global generator. A torch function mode answers its two kinds of
draws, `randint` for canvases and `multinomial` for tokens, with ours; nothing of transformers is
replaced.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

from bench.checkpoints import mid_config
from piecework_model.bounds import ModelLimits
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.denoiser import Denoiser
from piecework_model.engine.executor import Executor, SequenceStep
from piecework_model.engine.reference import ReferenceExecutor
from piecework_model.engine.scheduler import SequenceWork, prompt_chunks
from piecework_model.requests import GenerationRequest
from piecework_model.sampling import philox, sampler
from piecework_model.sampling.philox import Moment
from piecework_model.training.architecture import build_config


class OurDraws(TorchFunctionMode):
    """Answers the random draws of `generate` from the counter-based generator, in the order in
    which it makes them.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.canvas, self.step = -1, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.randint:
            return self._ids(kwargs["size"][1], kwargs["high"])[None]
        if func is torch.multinomial:
            drawn = philox.step_draws([self._moment], args[0].shape[0], 1)
            uniforms = torch.from_numpy(drawn.uniforms[0])
            return sampler.inverse_cdf_sample(args[0], uniforms)[:, None]
        return func(*args, **kwargs)

    @property
    def _moment(self) -> Moment:
        return Moment(self.seed, self.canvas, self.step)

    def _ids(self, size: int, vocab_size: int) -> torch.Tensor:
        """Renoised ids after a step; `start_canvas` makes the next call an initial one."""
        if self.step < 0:
            self.step = 0
            return torch.from_numpy(philox.initial_ids([self._moment], size, vocab_size)[0])
        ids = philox.step_draws([self._moment], size, vocab_size).renoise[0]
        self.step += 1
        return torch.from_numpy(ids)

    def start_canvas(self) -> None:
        self.canvas, self.step = self.canvas + 1, -1


class Listener:
    """The streamer of `generate`: keeps the argmax canvas of every step, and starts canvases in the
    draws."""

    def __init__(self, draws: OurDraws) -> None:
        self._draws = draws
        self.drafts: list[list[tuple[int, ...]]] = []

    def put(self, value: torch.Tensor) -> None:
        self._draws.start_canvas()
        self.drafts.append([])

    def put_draft(self, value: torch.Tensor) -> None:
        self.drafts[-1].append(tuple(value[0].tolist()))

    def end(self) -> None:
        pass


def reference_canvases(
    model: DiffusionGemmaForBlockDiffusion,
    request: GenerationRequest,
    eos_ids: frozenset[int],
    chunk_tokens: int | None = None,
) -> list[list[tuple[int, ...]]]:
    """The argmax canvas of every step of every canvas, as transformers computes them.

    chunk_tokens: `generate` is given the cache of all chunks but the last, filled by the model's
    own encoder; without it prefills the prompt in one pass.
    """
    draws = OurDraws(request.seed)
    listener = Listener(draws)
    chunks = prompt_chunks(request.prompt_ids, chunk_tokens or len(request.prompt_ids))
    denoiser = Denoiser(model)
    cache = denoiser.new_cache()
    with torch.inference_mode():
        for chunk in chunks[:-1]:
            denoiser.prefill(cache, chunk)
    with draws:
        model.generate(
            torch.tensor([chunks[-1]]),
            past_key_values=cache if chunks[:-1] else None,
            streamer=listener,
            max_new_tokens=request.max_tokens,
            max_denoising_steps=request.max_steps,
            sampler_config=EntropyBoundSamplerConfig(request.entropy_bound),
            t_max=request.temperature_start,
            t_min=request.temperature_end,
            stability_threshold=request.stability_steps,
            confidence_threshold=request.confidence_threshold,
            eos_token_id=sorted(eos_ids),
            pad_token_id=0,
        )
    return [steps for steps in listener.drafts if steps]


def our_canvases(
    executor: Executor, limits: ModelLimits, request: GenerationRequest, eos_ids: frozenset[int]
) -> list[list[tuple[int, ...]]]:
    """The same from one of our executors."""
    chunks = -(-len(request.prompt_ids) // executor.chunk_tokens)
    executor.open(request)
    for _ in range(chunks - 1):
        assert executor.step([SequenceWork(request.request_id, 1, denoise=False)]) == []
    canvases: list[list[tuple[int, ...]]] = []
    for _ in range(math.ceil(request.max_tokens / limits.canvas_size)):
        canvases.append([])
        pending, finished = 1, False
        while not finished:
            (outcome,) = executor.step([SequenceWork(request.request_id, pending, denoise=True)])
            assert isinstance(outcome, SequenceStep)
            pending, finished = 0, outcome.finished
            canvases[-1].append(outcome.argmax)
        if not eos_ids.isdisjoint(canvases[-1][-1]):
            break
        executor.commit(request.request_id, canvases[-1][-1])
    executor.close(request.request_id)
    return canvases


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
    before is: bfloat16, whose products do not depend on the number of their rows on any machine
    that we have seen.
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
