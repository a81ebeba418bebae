"""The start-up measurement of a vLLM endpoint: what the offer says about its speed (clause 3.1).

It measures as `piecework_model.machine.benchmark` measures our own engine: first the first canvas
of a request alone, then as many requests at once as the worker has slots. The end of the text is
ignored, so that a short story does not look like a slow engine.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from piecework.base.clock import Clock
from piecework_node.errors import EngineStartError
from piecework_node.vllm.checkpoint import ServedCheckpoint
from piecework_node.vllm.endpoint import VllmEndpoint
from piecework_node.vllm.wire import ServedModel

PROMPT: Final = "Write a story about a fox, a lantern and a river."
CANVASES_A_RUN: Final = 4
ALONE_SHARE: Final = 1 / 3
"""The share of the time for requests alone."""


@dataclass(frozen=True, slots=True)
class Speed:
    """tokens_per_second: of all requests together. first_canvas_ms: of a request alone, prefill
    included. The median.
    """

    tokens_per_second: float
    first_canvas_ms: float


async def measure(
    endpoint: VllmEndpoint,
    served: ServedModel,
    checkpoint: ServedCheckpoint,
    *,
    max_context: int,
    seconds: float,
    sequences: int,
    clock: Clock,
) -> Speed:
    """Run the prompt again and again until `seconds` have passed, and each kind of run at least
    once.

    Raises `EndpointLost` if the stream breaks off, and `EngineStartError` if the context has no
    room for a canvas behind the prompt.
    """
    prompt = checkpoint.codec.encode_content(PROMPT)
    canvases = min(CANVASES_A_RUN, (max_context - len(prompt)) // checkpoint.canvas_size)
    if canvases < 1:
        raise EngineStartError(
            f"a context of {max_context} tokens has no room for a canvas of "
            f"{checkpoint.canvas_size}"
        )

    async def run(tokens: int) -> int:
        count = 0
        stream = endpoint.stream(
            served.name, prompt, tokens, checkpoint.vocab_size, ignore_eos=True
        )
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                count += len(chunk.token_ids)
        return count

    await run(checkpoint.canvas_size)  # warms up, and does not count
    began = clock.monotonic()
    alone: list[float] = []
    while not alone or clock.monotonic() - began < seconds * ALONE_SHARE:
        before = clock.monotonic()
        await run(checkpoint.canvas_size)
        alone.append(clock.monotonic() - before)
    total, before = 0, clock.monotonic()
    while not total or clock.monotonic() - began < seconds:
        total += sum(
            await asyncio.gather(
                *(run(canvases * checkpoint.canvas_size) for _ in range(sequences))
            )
        )
    elapsed = max(clock.monotonic() - before, 1e-9)
    return Speed(total / elapsed, sorted(alone)[len(alone) // 2] * 1000)
