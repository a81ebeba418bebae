"""Our loop beside transformers' own `generate`: the same random numbers, and the canvases of both.

`generate` draws from torch's global generator. A torch function mode answers its two kinds of
draws, `randint` for canvases and `multinomial` for tokens, with ours. Another gives its products
the order of sums that ours have. Nothing of transformers is replaced.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import DiffusionGemmaForBlockDiffusion
from transformers.models.diffusion_gemma.generation_diffusion_gemma import EntropyBoundSamplerConfig

from piecework_model.bounds import ModelLimits
from piecework_model.engine.denoiser import Denoiser
from piecework_model.engine.executor import Executor, SequenceStep
from piecework_model.engine.scheduler import SequenceWork, prompt_chunks
from piecework_model.layers.own_products import OwnProducts
from piecework_model.requests import GenerationRequest
from piecework_model.sampling import philox, sampler
from piecework_model.sampling.philox import Moment


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


class SoftProducts(OwnProducts):
    """Multiplies as our executors do, soft embeddings too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.matmul and args[1] is self.embeddings:
            made = self.soft_embeddings(args[0].flatten(0, -2))
            return made.view(*args[0].shape[:-1], -1)
        return super().__torch_function__(func, types, args, kwargs)


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
    **images: torch.Tensor,
) -> list[list[tuple[int, ...]]]:
    """The argmax canvas of every step of every canvas, as transformers computes them.

    chunk_tokens: `generate` is given the cache of all chunks but the last, filled by the model's
    own encoder; without it prefills the prompt in one pass. images: what transformers' processor
    makes of them.
    """
    draws = OurDraws(request.seed)
    listener = Listener(draws)
    chunks = prompt_chunks(request.prompt_ids, chunk_tokens or len(request.prompt_ids))
    denoiser = Denoiser(model)
    cache = denoiser.new_cache()
    with torch.inference_mode():
        for chunk in chunks[:-1]:
            denoiser.prefill(cache, chunk)
    with SoftProducts(model), draws:
        model.generate(
            torch.tensor([chunks[-1].ids]),
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
            **images,
        )
    return [steps for steps in listener.drafts if steps]


def our_canvases(
    executor: Executor, limits: ModelLimits, request: GenerationRequest, eos_ids: frozenset[int]
) -> list[list[tuple[int, ...]]]:
    """The same from one of our executors."""
    chunks = len(prompt_chunks(request.prompt_ids, executor.chunk_tokens, request.images))
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
