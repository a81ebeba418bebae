"""Requests to vLLM's OpenAI-compatible server, and the checks of its answers. Pure.

Prompts go as token ids, and only token ids are read. The text comes from the checkpoint's own
tokenizer, so ids and text always agree. Seen with vLLM 0.32 (docs/vllm.md):

- The first chunk of a stream repeats the prompt's ids.
- The id that ended the text is among the last chunk's ids.
- A request that fails after its start is answered with status 200 and an error inside the stream.

Sources: vLLM, "OpenAI-Compatible Server",
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html. Server-Sent Events,
https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from piecework.base.jsons import loads
from piecework_node.errors import EndpointLost, EndpointUnfit, RequestDeclined

MAX_BODY_BYTES: Final = 1024 * 1024
"""Of an answer that is not a stream. A list of models takes 500 bytes a model."""
MAX_CANVAS_BYTES: Final = 8 * 1024 * 1024
"""Of an answer with a canvas: 1,024 positions with the probabilities of 128 ids each."""
MAX_LABEL_IDS: Final = 128
"""Whose probabilities one request may ask for."""
MAX_CHUNK_BYTES: Final = 256 * 1024
"""Of one line of a stream, without the prompt's ids. A canvas of 1,024 ids and its text take some
80 KiB.
"""
BYTES_PER_ECHOED_ID: Final = 12
"""A uint32 in decimal, its comma and a space."""
MAX_CHUNK_TOKENS: Final = 4096
"""In one chunk: four times the largest canvas. No engine decodes more between two looks at its
queue.
"""
_DATA: Final = b"data:"
_REQUESTS_OWN: Final = frozenset({400, 413, 422})
_ENDPOINTS_OWN: Final = frozenset({401, 403, 404, 405})


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as `/v1/models` lists it. max_model_len: prompt and output in tokens."""

    name: str
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a stream.

    finish: vLLM's reason at the end: "stop", "length" or another. stop_id: the token that the
    engine was told to stop at.
    """

    token_ids: tuple[int, ...]
    finish: str | None = None
    stop_id: int | None = None


@dataclass(frozen=True, slots=True)
class CanvasRequest:
    """One canvas to denoise, at a server that takes canvases (docs/vllm.md).

    canvas: its ids, noise included. pinned: the positions that stay. label_ids: of a read, the ids
    whose probabilities are asked for. Then one step is taken.
    """

    prompt_ids: tuple[int, ...]
    canvas: tuple[int, ...]
    pinned: tuple[int, ...] = ()
    label_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CanvasAnswer:
    """What a server says. logprobs: by position, the log probability of each id asked for."""

    token_ids: tuple[int, ...]
    logprobs: tuple[Mapping[int, float], ...] = ()


class End:
    """The stream's own end mark. Nothing follows."""


END: Final = End()


def completion_body(
    model: str, prompt_ids: tuple[int, ...], max_tokens: int, *, ignore_eos: bool = False
) -> dict[str, Any]:
    """Compose the body for `/v1/completions`.

    It has no seed and no temperature: those are the engine's own (clause 3.10).
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt_ids),
        "max_tokens": max_tokens,
        "stream": True,
        "return_token_ids": True,
    }
    return {**body, "ignore_eos": True} if ignore_eos else body


def canvas_body(model: str, request: CanvasRequest, canvas_size: int) -> dict[str, Any]:
    """Compose the body for one given canvas of `canvas_size` positions.

    The names are those of vLLM's pull request 57250. The end of the text is ignored, because a
    template says where it is.
    """
    extra: dict[str, Any] = {
        "diffusion_canvas_length": canvas_size,
        "diffusion_seed_canvas": list(request.canvas),
    }
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(request.prompt_ids),
        "max_tokens": canvas_size,
        "stream": False,
        "ignore_eos": True,
        "return_token_ids": True,
        "vllm_xargs": extra,
    }
    if request.label_ids:
        extra |= {"diffusion_max_steps": 1, "diffusion_read_only": 1}
        body |= {
            "logprobs": 1,
            "logprob_token_ids": list(request.label_ids),
            "return_tokens_as_token_ids": True,
        }
    else:
        extra["diffusion_pinned"] = list(request.pinned)
    return body


def parse_canvas(data: bytes, vocab_size: int) -> CanvasAnswer:
    """Parse the answer to one given canvas.

    Raises:
        EndpointLost: It is not as vLLM writes it.
    """
    choices = _object(data).get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise EndpointLost("an answer has not exactly one choice")
    ids, logprobs = choices[0].get("token_ids"), choices[0].get("logprobs")
    if not isinstance(ids, list) or not all(_is_count(token, vocab_size) for token in ids):
        raise EndpointLost("an answer's token ids are not in the vocabulary")
    rows = logprobs.get("top_logprobs") if isinstance(logprobs, dict) else None
    if rows is None:
        return CanvasAnswer(tuple(ids))
    if not isinstance(rows, list) or len(rows) > MAX_CHUNK_TOKENS:
        raise EndpointLost("an answer's probabilities are not a list, or too many")
    return CanvasAnswer(tuple(ids), tuple(map(_row, rows)))


def _row(row: Any) -> Mapping[int, float]:
    """Parse the log probabilities at one position, whose keys are `token_id:5`."""
    if not isinstance(row, dict):
        raise EndpointLost("an answer's probabilities at a position are not an object")
    found: dict[int, float] = {}
    for key, value in row.items():
        number = key.removeprefix("token_id:")
        known = number.isascii() and number.isdecimal() and len(number) < 10
        if not known or isinstance(value, bool) or not isinstance(value, int | float):
            raise EndpointLost("an answer's probability is not one of a token id")
        if not math.isfinite(value):
            raise EndpointLost("an answer's probability is not a number")
        found[int(number)] = float(value)
    return found


def max_line_bytes(prompt_tokens: int) -> int:
    """Return the longest line that a stream after such a prompt can have."""
    return MAX_CHUNK_BYTES + BYTES_PER_ECHOED_ID * prompt_tokens


def parse_line(line: bytes, vocab_size: int) -> Chunk | End | None:
    """Parse one line of a stream. Returns None if it carries nothing.

    Raises RequestDeclined or EndpointLost for an error inside the stream, and EndpointLost for
    anything that vLLM does not send.
    """
    line = line.strip()
    if not line or line.startswith(b":"):
        return None
    if not line.startswith(_DATA):
        raise EndpointLost("the stream is not one of events")
    data = line[len(_DATA) :].strip()
    if data == b"[DONE]":
        return END
    body = _object(data)
    if "error" in body:
        raise failure(None, body)
    return _chunk(body, vocab_size)


def failure(status: int | None, body: Any) -> RequestDeclined | EndpointLost | EndpointUnfit:
    """Decide whose fault a failed request is.

    The server's message may quote the prompt, so only its code is kept. status: the HTTP status, or
    None for an error inside a stream, which carries its own code.
    """
    error = body.get("error") if isinstance(body, dict) else None
    code = error.get("code") if status is None and isinstance(error, dict) else status
    if not isinstance(code, int) or isinstance(code, bool):
        return EndpointLost("the endpoint fails without a code")
    if code in _REQUESTS_OWN:
        return RequestDeclined(f"the engine declines the request with code {code}")
    if code in _ENDPOINTS_OWN:
        return EndpointUnfit(
            f"the endpoint answers with code {code}: look at its key, its path and its model"
        )
    return EndpointLost(f"the endpoint fails with code {code}")


def parse_models(data: bytes, wanted: str) -> ServedModel:
    """Find the model `wanted` (empty: the only one) in `/v1/models`. Raises `EndpointUnfit` if it
    is not served.
    """
    entries = _object(data).get("data")
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise EndpointUnfit("the list of models is not as vLLM writes it")
    names = [e.get("id") for e in entries]
    chosen = [e for e in entries if not wanted or e.get("id") == wanted]
    if len(chosen) != 1:
        shown = ", ".join(str(name)[:64] for name in names[:8]) or "nothing"
        raise EndpointUnfit(f"the endpoint serves {shown}; set vllm_model to one of them")
    name, length = chosen[0].get("id"), chosen[0].get("max_model_len")
    if not isinstance(name, str) or not _is_count(length, 2**31):
        raise EndpointUnfit("the endpoint names no model length (max_model_len): it is not vLLM")
    return ServedModel(name, length)


def parse_ids(data: bytes) -> tuple[int, ...]:
    """Parse the ids of an answer of `/tokenize`."""
    ids = _object(data).get("tokens")
    if not isinstance(ids, list) or not all(_is_count(i, 2**32) for i in ids):
        raise EndpointUnfit("the endpoint does not tokenize as vLLM does")
    return tuple(ids)


def parse_version(data: bytes) -> str:
    """Parse vLLM's version: at most 32 printable characters."""
    version = _object(data).get("version")
    if not isinstance(version, str):
        raise EndpointUnfit("the endpoint does not say its version")
    return "".join(c for c in version if c.isascii() and c.isprintable() and c != " ")[:32]


def _chunk(body: dict[str, Any], vocab_size: int) -> Chunk | None:
    choices = body.get("choices")
    if choices == []:  # the one that carries usage
        return None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise EndpointLost("a chunk has not exactly one choice")
    choice = choices[0]
    ids, finish, stop = (
        choice.get("token_ids"),
        choice.get("finish_reason"),
        choice.get("stop_reason"),
    )
    if ids is None and finish is None:
        raise EndpointUnfit("the endpoint does not return token ids: it takes vLLM 0.10.2 or later")
    ids = [] if ids is None else ids
    if not isinstance(ids, list) or len(ids) > MAX_CHUNK_TOKENS:
        raise EndpointLost("a chunk's token ids are not a list, or too many")
    if not all(_is_count(token, vocab_size) for token in ids):
        raise EndpointLost("a chunk has a token id that is not in the vocabulary")
    if finish is not None and not isinstance(finish, str):
        raise EndpointLost("a chunk's finish_reason is not a string")
    return Chunk(tuple(ids), finish, stop if _is_count(stop, vocab_size) else None)


def _is_count(value: object, below: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < below


def _object(data: bytes) -> dict[str, Any]:
    try:
        body = loads(data)
    except ValueError:
        raise EndpointLost("the endpoint's answer is not JSON") from None
    if not isinstance(body, dict):
        raise EndpointLost("the endpoint's answer is not a JSON object")
    return body
