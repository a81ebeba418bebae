"""How a row's known text reaches the KV cache: in chunks that the request alone decides. No torch.

A chunk is what one causal pass takes. Its keys and values depend, in their last bits, on where it
begins and ends, so the cuts are part of an engine profile and never of the schedule: the prompt is
cut at multiples of `chunk_tokens`, and each committed canvas is a chunk of its own. Which chunks
share a step with what else is the scheduler's to choose, and changes nothing.
"""

from __future__ import annotations

from piecework_model.requests import GenerationRequest

Ids = tuple[int, ...]


def prompt_chunks(prompt_ids: Ids, chunk_tokens: int) -> list[Ids]:
    """The prompt cut at multiples of `chunk_tokens`; the last chunk may be shorter."""
    return [
        prompt_ids[start : start + chunk_tokens]
        for start in range(0, len(prompt_ids), chunk_tokens)
    ]


def known_chunks(request: GenerationRequest, chunk_tokens: int) -> list[Ids]:
    """Everything that must be in the cache before the request's next denoising step, chunk by
    chunk."""
    return [*prompt_chunks(request.prompt_ids, chunk_tokens), *request.committed]
