"""OpenAI's chat-completions wire format to and from ours. Pure: dictionaries in, dictionaries out.

A field that would change the answer and cannot be honoured is refused by name. How the fields map:

* `model`: a name from `/v1/models`, a model digest in hex, or `any`.
* `max_completion_tokens` (or `max_tokens`): the job's token limit.
* `temperature`: the temperature at a canvas's last denoising step. The first step's stays at 0.8,
  or at the given temperature if that is higher. 0 is the most deterministic end of the schedule,
  not greedy decoding.
* `seed`: the job's seed, any 64-bit integer. Drawn at random when absent. The same seed, prompt,
  parameters and worker profile give the same text.
* `stop`: up to four strings. The text is cut before the first that appears, and the job is
  cancelled. Canvases that were delivered by then are paid in full.
* `piecework`: an object of our own: `max_steps`, `max_price` (base units for the job),
  `entropy_bound`, `temperature_start`, and `best_effort` (true lets in models that honour no seed
  and leave no trace). A request that sets `seed`, `temperature` or any of ours but `max_price` goes
  to replayable models only.

Amounts in requests and answers are base units, as whole numbers. Each `piecework` object of an
answer has a `token` with address, symbol and decimals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from piecework.base.amounts import Token
from piecework.base.errors import PieceworkError
from piecework.client.jobs.events import CanvasText, FinishReason, JobFinished, JobStarted
from piecework.client.jobs.requests import Generation, TextRequest, start_above
from piecework_protocol.conversation import Message
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_DENOISING_STEPS, MAX_MESSAGES_PER_PROMPT
from piecework_protocol.objects import Offer
from piecework_protocol.types import Amount, Micros, to_hex
from piecework_protocol.views import listed_models, members

MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 256
MAX_TEMPERATURE = 2.0

# Values that ask for nothing special; any other value would change the answer and is refused.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "store": (False,),
    "service_tier": ("auto", "default"),
    # Samplers of other servers, at the values that switch them off.
    "top_k": (-1, 0),
    "min_p": (0,),
    "top_a": (0,),
    "typical_p": (1,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
}
PARAMETERS: Mapping[str, str] = {
    "max_tokens": "max_tokens",
    "temperature_end": "temperature",
    "temperature_start": "piecework.temperature_start",
    "max_steps": "piecework.max_steps",
    "entropy_bound": "piecework.entropy_bound",
}
"""A job's parameters, and the members of a request that they come from."""
# These name the caller or steer caches and never the text.
_HARMLESS = frozenset(
    {
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "stream",
    }
)
_OURS = frozenset({"max_steps", "max_price", "entropy_bound", "temperature_start", "best_effort"})
_KNOWN = frozenset(
    {
        "model",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "seed",
        "stop",
        "stream_options",
        "piecework",
    }
)


class ApiError(PieceworkError):
    """A failure in OpenAI's shape. `kind` is its `type`. Programs look at `code`."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after_s: float | None = None,
        may_retry: bool = True,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message
        self.code, self.param, self.retry_after_s = code, param, retry_after_s
        self.may_retry = may_retry
        """Whether OpenAI's SDK may try again by itself. Not where that could pay twice."""

    def body(self) -> dict[str, Any]:
        """The JSON answer."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A parsed request: what to run, and how to answer."""

    request: TextRequest
    model: str
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def parse_chat(body: Any, *, best_effort: bool = False) -> ChatRequest:
    """Parse the JSON body of a chat completion.

    `best_effort` is what holds when the request does not say.

    Raises:
        ApiError: a field cannot be used (400). It names the field.
    """
    if not isinstance(body, dict):
        _bad("the body is a JSON object", None)
    for name in body:
        _check_supported(name, body[name])
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= 256:
        _bad("model is a name from /v1/models, or a model digest", "model")
    ours = body.get("piecework") or {}
    if not isinstance(ours, dict) or set(ours) - _OURS:
        _bad(f"piecework is an object with members among {', '.join(sorted(_OURS))}", "piecework")
    max_price = _integer(ours, "max_price", 0, 1 << 96)
    request = TextRequest(
        messages=_messages(body.get("messages")),
        model=None if model == "any" else model,
        generation=_generation(body, ours),
        max_price=None if max_price is None else Amount(max_price),
        best_effort=_flag(ours, "best_effort", best_effort),
    )
    options = body.get("stream_options") or {}
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        _bad("stream_options has the member include_usage", "stream_options")
    stream = _flag(body, "stream", False)
    if options and not stream:
        _bad("stream_options is for streams", "stream_options")
    return ChatRequest(
        request, model, _stop(body.get("stop")), stream, bool(options.get("include_usage"))
    )


def _check_supported(name: str, value: Any) -> None:
    if name in _KNOWN or name in _HARMLESS or value is None:
        return
    if name not in _NEUTRAL:
        _bad(f"the parameter {name!r} is not known here", name, code="unknown_parameter")
    if not any(
        (value == neutral and type(value) is not bool) or value is neutral
        for neutral in _NEUTRAL[name]
    ):
        _bad(f"{name} cannot be honoured with this value", name, code="unsupported_parameter")


def _generation(body: Mapping[str, Any], ours: Mapping[str, Any]) -> Generation:
    tokens = _token_limit(body, "max_completion_tokens")
    if tokens is None:
        tokens = _token_limit(body, "max_tokens")
    start = _real(ours, "temperature_start", MAX_TEMPERATURE)
    end = _real(body, "temperature", MAX_TEMPERATURE)
    if start is None and end is not None:
        start = start_above(end)
    bound = _real(ours, "entropy_bound", 100.0)
    seed = _integer(body, "seed", -(1 << 63), (1 << 64) - 1)
    return Generation(
        seed=None if seed is None else seed % (1 << 64),
        max_tokens=tokens,
        max_steps=_integer(ours, "max_steps", 1, MAX_DENOISING_STEPS),
        temperature_start=start,
        temperature_end=end,
        entropy_bound=bound,
    )


def _messages(raw: Any) -> tuple[Message, ...]:
    if not isinstance(raw, list) or not 1 <= len(raw) <= MAX_MESSAGES_PER_PROMPT:
        _bad(f"messages is a list of 1 to {MAX_MESSAGES_PER_PROMPT}", "messages")
    return tuple(_message(item, f"messages[{i}]") for i, item in enumerate(raw))


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        _bad("a message is an object", where)
    role = {"developer": "system"}.get(str(item.get("role")), item.get("role"))
    if role not in ("system", "user", "assistant"):
        _bad("a message's role is system, developer, user or assistant", f"{where}.role")
    for name, value in item.items():
        if name == "name" and isinstance(value, str):
            continue  # it tells participants of one role apart; no template here knows it
        if name not in ("role", "content") and value not in (None, [], {}):
            _bad(
                f"a message's {name} is not supported",
                f"{where}.{name}",
                code="unsupported_parameter",
            )
    return Message(str(role), _content(item.get("content"), f"{where}.content"))


def _content(content: Any, where: str) -> str:
    if isinstance(content, list):
        for part in content:
            if (
                not isinstance(part, dict)
                or part.get("type") != "text"
                or not isinstance(part.get("text"), str)
            ):
                _bad("only parts of type text are supported", where, code="unsupported_parameter")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        _bad("a message's content is text", where)
    try:
        content.encode()
    except UnicodeEncodeError:
        _bad("a message's content has lone surrogates", where)
    return content


def _stop(raw: Any) -> tuple[str, ...]:
    stops = [raw] if isinstance(raw, str) else raw or []
    valid = isinstance(stops, list) and len(stops) <= MAX_STOP_STRINGS
    if not valid or not all(
        isinstance(s, str) and 0 < len(s) <= MAX_STOP_CHARACTERS for s in stops
    ):
        _bad(f"stop is a string or up to {MAX_STOP_STRINGS} of them", "stop")
    return tuple(stops)


def _flag(source: Mapping[str, Any], name: str, default: bool) -> bool:
    value = source.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        _bad(f"{name} is true or false", name)
    return value


def _token_limit(source: Mapping[str, Any], name: str) -> int | None:
    """A limit of tokens. -1 means none, as other servers have it."""
    return None if source.get(name) == -1 else _integer(source, name, 1, 1 << 31)


def _integer(source: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = source.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 8.0 is how some languages write 8
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        _bad(f"{name} is a whole number from {least} to {most}", name)
    return value


def _real(source: Mapping[str, Any], name: str, most: float) -> Micros | None:
    value = source.get(name)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= most:  # neither NaN nor a number too long for a float
        _bad(f"{name} is a number from 0 to {most:g}", name)
    return Micros(round(value * 1_000_000))


def _bad(message: str, param: str | None, *, code: str = "invalid_value") -> NoReturn:
    raise ApiError(400, "invalid_request_error", message, code=code, param=param)


# --- the answer


class StopCutter:
    """Cuts a text that comes in pieces before the first stop string, which may straddle pieces.

    Up to the longest stop string less one character is held back, until it is known not to begin a
    stop.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._keep = max((len(s) for s in stops), default=1) - 1
        self._held = ""
        self.stopped = False

    def feed(self, text: str, *, last: bool) -> str:
        """What can be shown now. After a stop was found, nothing more."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for at in (self._held.find(s) for s in self._stops) if at >= 0]
        if found:
            self.stopped = True
            return self._held[: min(found)]
        keep = 0 if last else self._keep
        shown = self._held[: len(self._held) - keep] if keep else self._held
        self._held = self._held[len(shown) :]
        return shown


def finish_reason(finish: FinishReason, *, stopped: bool) -> str:
    """OpenAI's word for why the text ends."""
    return "length" if finish is FinishReason.TOKEN_LIMIT and not stopped else "stop"


def usage(ended: JobFinished) -> dict[str, Any]:
    """The `usage` object, from the receipts."""
    return {
        "prompt_tokens": ended.prompt_tokens,
        "completion_tokens": ended.output_tokens,
        "total_tokens": ended.prompt_tokens + ended.output_tokens,
    }


def piecework_object(
    accepted: JobStarted, ended: JobFinished, canvases: list[CanvasText], token: Token
) -> dict[str, Any]:
    """The `piecework` object: what was paid to whom for what. Amounts in base units of `token`."""
    shown = ("canvas", "receipt", "leaf_index", "tokens", "steps", "amount")
    return {
        **members(accepted, "model_digest", "service", "ceiling"),
        **members(ended, "job", "channel", "cost", "denoising_steps", "acknowledged"),
        "worker": to_hex(ended.operator),
        "token": token_object(token),
        "receipts": [members(canvas, *shown) for canvas in canvases],
    }


def token_object(token: Token) -> dict[str, Any]:
    """What base units are counted in: a cost of 1500000 with 6 decimals is 1.5 tokens."""
    return members(token, "address", "symbol", "decimals")


def model_list(offers: Iterable[Offer], token: Token) -> dict[str, dict[str, Any]]:
    """The entries of `/v1/models`, by name. Prices in base units of `token`."""
    return {
        name: {
            "id": name,
            "object": "model",
            "created": model.entries[0][0].issued_at,
            "owned_by": "piecework",
            "piecework": {
                **members(model, "digests", "services", "workers"),
                "lowest_output_price_per_million": min(
                    entry.price_per_million_output_tokens for _, entry in model.entries
                ),
                "token": token_object(token),
            },
        }
        for name, model in listed_models(offers, lambda model: model.name).items()
    }


@dataclass(frozen=True, slots=True)
class Head:
    """What every piece of one answer repeats."""

    id: str
    created: int
    model: str

    def of(self, kind: str) -> dict[str, Any]:
        """The members in front of the choices."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def completion(head: Head, text: str, reason: str, more: dict[str, Any]) -> dict[str, Any]:
    """The whole answer of a request that does not stream."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": reason,
    }
    return {**head.of("chat.completion"), "choices": [choice], **more}


def chunk(head: Head, delta: dict[str, Any] | None, reason: str | None = None) -> dict[str, Any]:
    """One piece of a stream; without a delta, the last one that only carries usage."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return {**head.of("chat.completion.chunk"), "choices": [] if delta is None else [choice]}


def as_malformed(error: MalformedInput) -> ApiError:
    """A prompt that the protocol cannot carry."""
    return ApiError(400, "invalid_request_error", str(error), code=error.code, param="messages")
