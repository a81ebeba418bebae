"""Our loop against transformers' own `generate`: with the same random numbers, the same canvases, step by
step.

`generate` draws from torch's global generator. A torch function mode answers its two kinds of draws,
`randint` for canvases and `multinomial` for tokens, with ours; nothing of transformers is replaced.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

from model import philox, sampler
from model.denoiser import Denoiser
from model.executor import ReferenceExecutor, RowStep
from model.loading import LoadedModel
from model.requests import GenerationRequest
from model.training.architecture import build_config


class OurDraws(TorchFunctionMode):
    """Answers the random draws of `generate` from the counter-based generator, in the order in which it makes
    them.
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
            uniforms = torch.from_numpy(philox.uniforms(self.seed, self.canvas, self.step, args[0].shape[0]))
            return sampler.sample(args[0], uniforms)[:, None]
        return func(*args, **kwargs)

    def _ids(self, size: int, vocab_size: int) -> torch.Tensor:
        """Renoised ids after a step; `start_canvas` makes the next call an initial one."""
        if self.step < 0:
            self.step = 0
            return torch.from_numpy(philox.initial_ids(self.seed, self.canvas, size, vocab_size))
        ids = philox.renoise_ids(self.seed, self.canvas, self.step, size, vocab_size)
        self.step += 1
        return torch.from_numpy(ids)

    def start_canvas(self) -> None:
        self.canvas, self.step = self.canvas + 1, -1


class Listener:
    """The streamer of `generate`: keeps the argmax canvas of every step, and starts canvases in the draws."""

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
    model: DiffusionGemmaForBlockDiffusion, request: GenerationRequest, eos_ids: frozenset[int]
) -> list[list[tuple[int, ...]]]:
    """The argmax canvas of every step of every canvas, as transformers computes them."""
    draws = OurDraws(request.seed)
    listener = Listener(draws)
    with draws:
        model.generate(
            torch.tensor([request.prompt_ids]),
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
    model: DiffusionGemmaForBlockDiffusion, request: GenerationRequest, eos_ids: frozenset[int]
) -> list[list[tuple[int, ...]]]:
    """The same from our executor."""
    config = model.config
    executor = ReferenceExecutor(Denoiser(model), config.canvas_length, config.text_config.vocab_size)
    executor.open(request)
    canvases: list[list[tuple[int, ...]]] = []
    for _ in range(math.ceil(request.max_tokens / config.canvas_length)):
        canvases.append([])
        finished = False
        while not finished:
            (outcome,) = executor.step([request.request_id])
            assert isinstance(outcome, RowStep)
            canvases[-1].append(outcome.record.argmax)
            finished = outcome.finished
        if not eos_ids.isdisjoint(canvases[-1][-1]):
            break
        executor.commit(request.request_id, canvases[-1][-1])
    return canvases


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
    """Random weights, large enough that logits are peaked; experts, sliding and full attention, as in the
    bundle.
    """
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(3)
    config = build_config(vocab_size=300)
    config.text_config.initializer_range = config.initializer_range = 0.3
    model = DiffusionGemmaForBlockDiffusion(config).eval().requires_grad_(False)
    torch.random.set_rng_state(generator_state)
    model.set_experts_implementation("eager")
    return model


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_the_bundled_model_gives_the_canvases_of_generate_step_by_step(
    bundled: LoadedModel, seed: int
) -> None:
    prompt = bundled.tokenizer.encode_template(
        "<bos><|turn>user\nTell me a story about an owl.<turn|>\n<|turn>model\n"
    )
    wanted = request(prompt, seed=seed, max_steps=48, max_tokens=160)
    theirs = reference_canvases(bundled.model, wanted, bundled.eos_ids)
    assert our_canvases(bundled.model, wanted, bundled.eos_ids) == theirs


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stability_steps": 0, "confidence_threshold": 100.0},
        {"stability_steps": 3, "confidence_threshold": 100.0, "entropy_bound": 40.0},
        {"temperature_start": 3.0, "temperature_end": 0.1, "entropy_bound": 5.0, "max_steps": 7},
    ],
)
@pytest.mark.parametrize("prompt_length", [1, 40, 150])  # the window is 64 tokens
def test_random_weights_give_the_canvases_of_generate(
    random_model: DiffusionGemmaForBlockDiffusion, changes: dict[str, Any], prompt_length: int
) -> None:
    prompt = tuple(philox.initial_ids(prompt_length, 7, prompt_length, 300).tolist())
    wanted = request(prompt, **changes)
    theirs = reference_canvases(random_model, wanted, frozenset({1}))
    assert our_canvases(random_model, wanted, frozenset({1})) == theirs
    assert sum(map(len, theirs)) > 1


def test_what_the_published_format_ties_is_tied_after_loading(bundled: LoadedModel, tmp_path: Path) -> None:
    model = bundled.model.model
    assert model.encoder.language_model.embed_tokens.weight is model.decoder.embed_tokens.weight
    assert bundled.model.lm_head.weight is model.decoder.embed_tokens.weight
    assert (
        model.encoder.language_model.layers[0].mlp.gate_proj.weight
        is model.decoder.layers[0].mlp.gate_proj.weight
    )
