"""A signed job as the engine takes it."""

from __future__ import annotations

from typing import Final

from piecework_model.requests import EncodedContent, GenerationRequest
from piecework_protocol.objects import Parameters

_MICRO: Final = 1_000_000


def generation_request(
    request_id: str,
    content: EncodedContent,
    parameters: Parameters,
    *,
    canvas_limit: int,
    committed: tuple[tuple[int, ...], ...],
    drafts: bool,
    tenant: str = "",
    keep_records: bool = False,
) -> GenerationRequest:
    """Turn a job into a request. Fixed point becomes floating point here and nowhere else.

    tenant: prompts of one tenant may share a cached beginning.
    keep_records: as in `GenerationRequest`.
    """
    return GenerationRequest(
        request_id=request_id,
        prompt_ids=content.prompt_ids,
        seed=parameters.seed,
        max_tokens=parameters.max_tokens,
        max_steps=parameters.max_steps,
        temperature_start=parameters.temperature_start / _MICRO,
        temperature_end=parameters.temperature_end / _MICRO,
        entropy_bound=parameters.entropy_bound / _MICRO,
        confidence_threshold=parameters.confidence_threshold / _MICRO,
        stability_steps=parameters.stability_steps,
        canvas_limit=canvas_limit,
        committed=committed,
        draft_every=1 if drafts else 0,
        tenant=tenant,
        template=content.template,
        reads=content.reads,
        images=content.images,
        keep_records=keep_records,
        opening=content.opening,
    )
