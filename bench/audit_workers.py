"""Workers for `bench.audit`: honest ones on other numerics, and cheats.

A worker is asked for a request and shows a canvas: what it claims, the records of its steps and its
soft embeddings. All of them claim to have run what was asked for, in the precision of their offer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from bench.precision import CONDITIONING, EXPERTS, LINEARS
from piecework_model.audit.forced import ForcedPass
from piecework_model.audit.opening import OpenedStep
from piecework_model.bounds import ModelLimits
from piecework_model.checkpoint.loading import DtypeChoice, LoadedModel
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.engine import Engine
from piecework_model.errors import PromptError
from piecework_model.precision import Quantization
from piecework_model.requests import CanvasEvent, FailedEvent, GenerationRequest
from piecework_model.sampling import sampler
from piecework_model.sampling.philox import Moment, initial_ids, step_draws
from piecework_model.training import asking, grammar, skills
from piecework_protocol.kinds.read import ReadContent
from piecework_protocol.kinds.text import TextContent
from piecework_protocol.trace import EmbeddingType, StepRecord, soft_field

SEQUENCES: Final = 8
ANSWER_TOKENS: Final = 128
INVENTED_STEPS: Final = 6
SEED: Final = 20261129


@dataclass(frozen=True, slots=True)
class ServedCanvas:
    """A canvas as its worker shows it.

    request: what was asked for, with the canvases before as committed. records, softs: one a step.
    """

    request: GenerationRequest
    records: tuple[StepRecord, ...]
    softs: tuple[Tensor, ...]
    token_ids: tuple[int, ...]

    @property
    def kind(self) -> str:
        """The kind of its job."""
        return "read" if self.request.reads else "text"

    @property
    def leaves(self) -> tuple[bytes, ...]:
        """The step leaves that the worker committed to."""
        return tuple(record.leaf() for record in self.records)

    def opened(self, limits: ModelLimits) -> list[OpenedStep]:
        """Everything opened, as for a forced audit."""
        pairs = zip(self.records, self.softs, strict=True)
        return [OpenedStep.of(record, soft, limits) for record, soft in pairs]


Requests = Sequence[GenerationRequest]
Run = Callable[[Requests], list[ServedCanvas]]
"""Ask for requests, and get all canvases of all of them."""


# What is asked


def ask(loaded: LoadedModel, number: int) -> GenerationRequest:
    """Make request `number` of the workload. The same every time, for one checkpoint.

    Stories, cards with pinned fields, reads and, if the chat template carries them, thoughts and
    tools take turns.
    """
    draw = random.Random(SEED + number)  # noqa: S311  a workload, no secret
    makers = (_story, _card, _story, _read, _story, _thought, _tool)
    for shift in range(len(makers)):
        content = makers[(number + shift) % len(makers)](draw)
        try:
            return asking.request(
                loaded,
                content,
                asking.PUBLISHED,
                request_id=f"request-{number}",
                seed=draw.getrandbits(64),
                max_tokens=ANSWER_TOKENS,
            )
        except PromptError:
            continue
    raise RuntimeError("this checkpoint can be asked nothing")


def _story(draw: random.Random) -> TextContent:
    return TextContent(skills.user(grammar.example(draw).prompt))


def _card(draw: random.Random) -> TextContent:
    asked = skills.ask_card(draw)
    return TextContent(asked.conversation, skills.template(asked))


def _thought(draw: random.Random) -> TextContent:
    return TextContent(skills.ask_thought(draw).conversation)


def _tool(draw: random.Random) -> TextContent:
    return TextContent(skills.ask_tool(draw).conversation)


def _read(draw: random.Random) -> ReadContent:
    return skills.draw_questions(draw, 4)[0]


# Who answers


@dataclass(frozen=True, slots=True)
class Numerics:
    """How somebody computes: his worker's precision, threads and where he cuts prompts."""

    dtype: DtypeChoice
    quantization: Quantization = "none"
    threads: int = 1
    chunk_canvases: int = 2


class _OtherChunks(ModelLimits):
    """Limits of an engine that cuts prompts at one canvas."""

    @property
    def chunk_tokens(self) -> int:
        """One canvas."""
        return self.canvas_size


def cut_otherwise(loaded: LoadedModel) -> LoadedModel:
    """The same model, whose prompts are cut at one canvas instead of two."""
    known = loaded.limits
    members = {field.name: getattr(known, field.name) for field in fields(known)}
    return replace(loaded, limits=_OtherChunks(**members))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for what torch computes, then one again."""
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def serve(loaded: LoadedModel, requests: Requests) -> list[ServedCanvas]:
    """Answer requests together, as a worker does, and show every canvas."""
    made: dict[tuple[str, int], list[tuple[StepRecord, Tensor]]] = {}

    def observe(request_id: str, record: StepRecord, soft: Tensor) -> None:
        made.setdefault((request_id, record.canvas), []).append((record, soft.clone()))

    executor = BatchedExecutor(loaded.model, loaded.limits, observe=observe)
    engine = Engine(loaded, max_sequences=SEQUENCES, max_queued=len(requests), executor=executor)
    asked = {request.request_id: request for request in requests}
    texts: dict[str, list[tuple[int, ...]]] = {name: [] for name in asked}
    shown: list[ServedCanvas] = []
    for request in requests:
        engine.submit(request)
    while engine.has_runnable:
        for event in engine.step():
            if isinstance(event, FailedEvent):
                raise RuntimeError(f"the engine failed: {event.message}")
            if isinstance(event, CanvasEvent):
                before = texts[event.request_id]
                records, softs = zip(*made.pop((event.request_id, event.canvas)), strict=True)
                request = replace(asked[event.request_id], committed=tuple(before))
                shown.append(ServedCanvas(request, records, softs, event.token_ids))
                before.append(event.token_ids)
    return shown


def claiming(run: Run, change: Callable[[GenerationRequest], GenerationRequest]) -> Run:
    """Run something else than what is asked for, and claim what was asked for."""

    def changed(requests: Requests) -> list[ServedCanvas]:
        asked = {request.request_id: request for request in requests}
        return [
            replace(
                canvas,
                request=replace(
                    asked[canvas.request.request_id], committed=canvas.request.committed
                ),
            )
            for canvas in run([change(request) for request in requests])
        ]

    return changed


def half_the_steps(request: GenerationRequest) -> GenerationRequest:
    """The whole temperature schedule in half of the steps."""
    return replace(request, max_steps=max(1, request.max_steps // 2))


def cooler(request: GenerationRequest) -> GenerationRequest:
    """A temperature that is lower by a tenth."""
    start, end = 0.9 * request.temperature_start, 0.9 * request.temperature_end
    return replace(request, temperature_start=start, temperature_end=end)


def other_seed(request: GenerationRequest) -> GenerationRequest:
    """The next seed."""
    return replace(request, seed=(request.seed + 1) % 2**64)


def cached(run: Run) -> Run:
    """Answer with the trace of another request."""

    def others(requests: Requests) -> list[ServedCanvas]:
        texts = [request for request in requests if not request.template]
        asked = {r.request_id: r for r in texts}
        following = dict(zip(asked, [*list(asked)[1:], *list(asked)[:1]], strict=True))
        return [
            replace(
                canvas,
                request=replace(
                    asked[following[canvas.request.request_id]],
                    committed=canvas.request.committed,
                ),
            )
            for canvas in run(texts)
        ]

    return others


def edited(run: Run) -> Run:
    """Replace one free token of a finished canvas, in its trace too."""

    def edit(canvas: ServedCanvas, draw: random.Random, vocabulary: int) -> ServedCanvas:
        last = canvas.records[-1]
        argmax = np.frombuffer(last.argmax, dtype="<u4").copy()
        template = canvas.request.template
        start = len(canvas.request.committed) * len(argmax)
        free = [i for i in range(len(argmax)) if not template or template[start + i] < 0]
        place = draw.choice(free)
        argmax[place] = (int(argmax[place]) + draw.randrange(1, vocabulary)) % vocabulary
        records = (*canvas.records[:-1], replace(last, argmax=argmax.tobytes()))
        return replace(canvas, records=records, token_ids=tuple(argmax.tolist()))

    def edits(requests: Requests) -> list[ServedCanvas]:
        draw = random.Random(requests[0].seed)  # noqa: S311  a cheat, no secret
        shown = [canvas for canvas in run(requests) if _has_free(canvas)]
        return [edit(canvas, draw, VOCABULARY) for canvas in shown]

    return edits


VOCABULARY: Final = 1000
"""Ids below are in every edition of the bundled vocabulary."""


def _has_free(canvas: ServedCanvas) -> bool:
    size, template = len(canvas.token_ids), canvas.request.template
    start = len(canvas.request.committed) * size
    return canvas.kind == "text" and (not template or min(template[start : start + size]) < 0)


def forged(run: Run, honest: LoadedModel) -> Run:
    """Run another model, then compute the fingerprints with the right one, step by step.

    One batched pass of the right model is all that it costs. No score looks at log-probabilities.
    """
    forced = ForcedPass(honest)

    def forge(canvas: ServedCanvas) -> ServedCanvas:
        opened = canvas.opened(honest.limits)
        seen = forced.figures(canvas.request, opened)
        apart = np.stack([seen.entropy, np.zeros_like(seen.gap), seen.gap], axis=-1)
        prints = [step.fingerprint - apart[index] for index, step in enumerate(opened)]
        records = tuple(
            replace(record, fingerprint=numbers.astype("<f2").tobytes())
            for record, numbers in zip(canvas.records, prints, strict=True)
        )
        return replace(canvas, records=records)

    return lambda requests: [forge(canvas) for canvas in run(requests)]


def invented(run: Run, width: int, vocabulary: int) -> Run:
    """Invent the trace of a text that was written before, without any model.

    Every random id, every accepted set and the end follow the rules. The numbers are made up.
    """

    def invent(canvas: ServedCanvas) -> ServedCanvas:
        records, softs = _invented(canvas, width, vocabulary)
        return replace(canvas, records=records, softs=softs)

    return lambda requests: [
        invent(canvas) for canvas in run([r for r in requests if not r.template])
    ]


def _invented(
    canvas: ServedCanvas, width: int, vocabulary: int
) -> tuple[tuple[StepRecord, ...], tuple[Tensor, ...]]:
    """Accept a quarter of the positions more at each step, and be sure of all at the last two."""
    request, text = canvas.request, np.array(canvas.token_ids, dtype=np.int64)
    index, size = len(request.committed), len(text)
    draw = np.random.default_rng(request.seed)
    before = initial_ids([Moment(request.seed, index, 0)], size, vocabulary)[0]
    order = draw.permutation(size)
    records: list[StepRecord] = []
    softs: list[Tensor] = []
    for step in range(INVENTED_STEPS):
        unsure = np.zeros(size, dtype=bool)
        unsure[order[(step + 1) * size // 4 :]] = True
        entropy = np.where(unsure, draw.uniform(1.0, 3.0, size), draw.uniform(0, 1e-3, size))
        numbers = np.stack([entropy, -entropy * draw.random(size), 20 * draw.random(size)], axis=-1)
        fingerprint = numbers.astype("<f2")
        committed = torch.from_numpy(fingerprint[:, 0].astype(np.float32))[None]
        accepted = sampler.accept(committed, torch.tensor([request.entropy_bound]))[0].numpy()
        renoised = step_draws([Moment(request.seed, index, step)], size, vocabulary).renoise[0]
        after = np.where(accepted, text, renoised)
        soft = torch.from_numpy(draw.normal(0, 0.1, (size, width))).to(torch.bfloat16)
        records.append(
            StepRecord(
                canvas=index,
                step=step,
                before=before.astype("<u4").tobytes(),
                after=after.astype("<u4").tobytes(),
                argmax=text.astype("<u4").tobytes(),
                accepted=np.packbits(accepted, bitorder="little").tobytes(),
                soft=soft_field(EmbeddingType.BFLOAT16, soft.view(torch.uint8).numpy().tobytes()),
                fingerprint=fingerprint.tobytes(),
            )
        )
        softs.append(soft)
        before = after
    return tuple(records), tuple(softs)


def int8(loaded: LoadedModel) -> LoadedModel:
    """Round a model's layers to 8 bits in place, with one scale an output channel."""
    pattern = re.compile("|".join((EXPERTS, LINEARS, CONDITIONING)))
    for name, weight in loaded.model.state_dict().items():
        if pattern.fullmatch(name):
            scale = weight.float().abs().amax(-1, keepdim=True) / 127
            weight.copy_((weight.float() / scale).round() * scale)
    return loaded


def without_a_layer(loaded: LoadedModel) -> LoadedModel:
    """Leave the middle layer's work out, in place: a smaller model of the same text."""
    layers = loaded.model.model.decoder.layers
    layer = layers[len(layers) // 2]
    for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
        norm.weight.data.zero_()
    return loaded
