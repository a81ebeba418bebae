"""What all formats share: errors, the fields of a body, parameters, ids, usage. Pure.

How the parameters of other servers map:

* `model`: a name from `/v1/models`, a model digest in hex, or `any`.
* `temperature`: scales the published schedule. 1 is the published one, from 0.8 at the first
  denoising step to 0.4 at the last. 0.5 halves both ends. 0 is the least that workers take (0.01 at
  both ends), which is nearly greedy. Above 1 both ends grow in proportion.
* `seed`: the job's seed, any 64-bit integer. Drawn at random when absent. Choice number i of a
  request with `n` has the seed plus i.
* `stop`: up to four strings. The text is cut before the first that appears, and the job is
  cancelled. Canvases that were delivered by then are paid in full.
* `piecework`: an object of our own: `max_steps`, `max_price` (base units for the whole request),
  `entropy_bound`, `temperature_start`, `drafts`, `draws`, `evidence` (the answer proves itself),
  and `best_effort` (true lets in models that honour no seed and leave no trace). A request that
  sets `seed`, `temperature` or any of ours but `max_price` and `evidence` goes to replayable
  models only.

A parameter that cannot be honoured is left out, and the answer names it. A gateway that is strict
refuses it. Amounts are base units, as whole numbers, but for `usage.cost`, which is in tokens.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NoReturn

from piecework.base.amounts import Token
from piecework.base.errors import PieceworkError
from piecework.base.text import is_text
from piecework.client.jobs.requests import Generation, schedule
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_DENOISING_STEPS, MAX_DRAWS
from piecework_protocol.types import Amount, Micros
from piecework_protocol.views import members

MAX_STOP_STRINGS: Final = 4
MAX_STOP_CHARACTERS: Final = 256
MAX_TEMPERATURE: Final = 2.0
MAX_CHOICES: Final = 16
"""Choices of one request. Each is a job."""
MAX_NAMED: Final = 32
"""Parameters that an answer names as ignored. The rest is counted."""

_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
# Values that ask for nothing special. Any other value cannot be honoured.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "best_of": (1,),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "store": (False,),
    "background": (False,),
    "service_tier": ("auto", "default"),
    "truncation": ("disabled",),
    "include": ([],),
    # Samplers of other servers, at the values that switch them off.
    "top_k": (-1, 0),
    "min_p": (0,),
    "top_a": (0,),
    "typical_p": (1,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
}
# These name the caller or steer caches, and never change the text.
_HARMLESS = frozenset(
    {
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
    }
)
_OURS = frozenset(
    {
        "max_steps",
        "max_price",
        "entropy_bound",
        "temperature_start",
        "best_effort",
        "drafts",
        "draws",
        "evidence",
    }
)
PARAMETERS: Mapping[str, str] = {
    "max_tokens": "max_tokens",
    "temperature_end": "temperature",
    "temperature_start": "piecework.temperature_start",
    "max_steps": "piecework.max_steps",
    "entropy_bound": "piecework.entropy_bound",
}
"""A job's parameters, and the members of a request that they come from."""


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


def wrong(message: str, param: str | None, *, code: str = "invalid_value") -> ApiError:
    """Return the error that the caller made a mistake (400)."""
    return ApiError(400, "invalid_request_error", message, code=code, param=param)


def bad(message: str, param: str | None, *, code: str = "invalid_value") -> NoReturn:
    """Refuse the request: the caller's mistake.

    Raises:
        ApiError: Always (400).
    """
    raise wrong(message, param, code=code)


def as_malformed(error: MalformedInput, param: str = "messages") -> ApiError:
    """A prompt that the protocol cannot carry."""
    return ApiError(400, "invalid_request_error", str(error), code=error.code, param=param)


@dataclass(frozen=True, slots=True)
class FormatOptions:
    """What a gateway's settings say about requests.

    Attributes:
        best_effort: What holds when a request does not say.
        strict: Whether a parameter that cannot be honoured is refused.
    """

    best_effort: bool = False
    strict: bool = False


class Fields:
    """The members of a JSON object, each checked as it is taken.

    `rest` then judges what nobody took: neutral and harmless members pass, others are ignored by
    name, or refused by a strict gateway.
    """

    def __init__(self, raw: Any, options: FormatOptions, where: str = "") -> None:
        if not isinstance(raw, dict):
            bad(f"{where or 'the body'} is a JSON object", where or None)
        self._raw: dict[str, Any] = raw
        self._options, self._where = options, where
        self._taken: set[str] = set()
        self._ignored: dict[str, None] = {}

    def path(self, name: str) -> str:
        """Where a member stands in the body."""
        return f"{self._where}.{name}" if self._where else name

    def take(self, name: str) -> Any:
        """Take a member as it is. None if it is absent."""
        self._taken.add(name)
        return self._raw.get(name)

    def text(self, name: str, *, longest: int | None = None) -> str | None:
        """Take a text that UTF-8 can encode.

        Raises:
            ApiError: It is not such.
        """
        value = self.take(name)
        return None if value is None else plain_text(value, self.path(name), longest=longest)

    def flag(self, name: str, default: bool) -> bool:
        """Take true or false.

        Raises:
            ApiError: It is another value.
        """
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            bad(f"{name} is true or false", self.path(name))
        return value

    def integer(self, name: str, least: int, most: int) -> int | None:
        """Take a whole number between two bounds, both included.

        Raises:
            ApiError: It is not such.
        """
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # 8.0 is how some languages write 8
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            bad(f"{name} is a whole number from {least} to {most}", self.path(name))
        return value

    def real(self, name: str, most: float) -> float | None:
        """Take a number from 0 to `most`.

        Raises:
            ApiError: It is not such.
        """
        value = self.take(name)
        if value is None:
            return None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= most:  # neither NaN nor a number too long for a float
            bad(f"{name} is a number from 0 to {most:g}", self.path(name))
        return float(value)

    def micros(self, name: str, most: float) -> Micros | None:
        """Take a number from 0 to `most` as millionths.

        Raises:
            ApiError: It is not such.
        """
        value = self.real(name, most)
        return None if value is None else Micros(round(value * 1_000_000))

    def items(self, name: str, most: int, *, least: int = 0) -> list[Any]:
        """Take a list. An absent one is empty.

        Raises:
            ApiError: It is not a list, or too short or too long.
        """
        value = self.take(name)
        found = [] if value is None else value
        if not isinstance(found, list) or not least <= len(found) <= most:
            bad(f"{name} is a list of {least} to {most}", self.path(name))
        return found

    def inner(self, name: str) -> Fields:
        """Take an object. An absent one is empty.

        Raises:
            ApiError: It is not an object.
        """
        value = self.take(name)
        return Fields({} if value is None else value, self._options, self.path(name))

    def ignore(self, name: str) -> None:
        """Say that a member cannot be honoured.

        Raises:
            ApiError: The gateway is strict.
        """
        where = plain_text(self.path(name), "a member's name")
        if self._options.strict:
            bad(f"{where} cannot be honoured", where, code="unsupported_parameter")
        self._ignored[where if _NAME.fullmatch(where) else "(unprintable)"] = None

    def rest(self) -> tuple[str, ...]:
        """Judge what nobody took, and return the names of all that is ignored.

        Raises:
            ApiError: The gateway is strict, and something cannot be honoured.
        """
        for name, value in self._raw.items():
            if name in self._taken or name in _HARMLESS or value is None:
                continue
            if not any(_same(value, neutral) for neutral in _NEUTRAL.get(name, ())):
                self.ignore(name)
        return tuple(self._ignored)


def _same(value: Any, neutral: Any) -> bool:
    return value is neutral or (value == neutral and type(value) is not bool)


def plain_text(value: Any, where: str, *, longest: int | None = None) -> str:
    """Check that a value is a text that UTF-8 can encode.

    Raises:
        ApiError: It is not such, or too long.
    """
    if not isinstance(value, str) or (longest is not None and len(value) > longest):
        bad(f"{where} is a text" + ("" if longest is None else f" of at most {longest}"), where)
    if not is_text(value):
        bad(f"{where} has lone surrogates", where)
    return value


@dataclass(frozen=True, slots=True)
class Wanted:
    """What every request says about its jobs, whatever its format.

    Attributes:
        model: As the request names it.
        generation: The parameters of each job.
        max_price: The most that all jobs together may cost, in base units.
        best_effort: Whether models without seed and trace will do.
        drafts: Whether unfinished canvases are shown.
        draws: Samples of a read.
        evidence: Whether the answer has what proves it.
    """

    model: str
    generation: Generation
    max_price: Amount | None
    best_effort: bool
    drafts: bool
    draws: int
    evidence: bool = False

    @property
    def wanted_model(self) -> str | None:
        """The model's name or digest. None for any."""
        return None if self.model == "any" else self.model


def take_wanted(fields: Fields, options: FormatOptions, *limits: str) -> Wanted:
    """Take the model, the sampling parameters, and our own object.

    limits: the names of the token limit in this format, the best first.

    Raises:
        ApiError: One of them cannot be used. It names the field.
    """
    model = fields.take("model")
    if not isinstance(model, str) or not 0 < len(model) <= 256:
        bad("model is a name from /v1/models, or a model digest", "model")
    raw = fields.take("piecework") or {}
    if not isinstance(raw, dict) or set(raw) - _OURS:
        bad(f"piecework is an object with members among {', '.join(sorted(_OURS))}", "piecework")
    ours = Fields(raw, options, "piecework")
    max_price = ours.integer("max_price", 0, 1 << 96)
    return Wanted(
        model=model,
        generation=_generation(fields, ours, limits),
        max_price=None if max_price is None else Amount(max_price),
        best_effort=ours.flag("best_effort", options.best_effort),
        drafts=ours.flag("drafts", False),
        draws=ours.integer("draws", 1, MAX_DRAWS) or 1,
        evidence=ours.flag("evidence", False),
    )


def _generation(fields: Fields, ours: Fields, limits: tuple[str, ...]) -> Generation:
    given = [_token_limit(fields, name) for name in limits]
    seed = fields.integer("seed", -(1 << 63), (1 << 64) - 1)
    temperature = fields.real("temperature", MAX_TEMPERATURE)
    # The published schedule is left to the worker, so that a best-effort model can take the job.
    usual = temperature is None or temperature == 1
    start, end = (None, None) if usual else schedule(temperature or 0)
    first = ours.micros("temperature_start", MAX_TEMPERATURE)
    return Generation(
        seed=None if seed is None else seed % (1 << 64),
        max_tokens=next((limit for limit in given if limit is not None), None),
        max_steps=ours.integer("max_steps", 1, MAX_DENOISING_STEPS),
        temperature_start=start if first is None else first,
        temperature_end=end,
        entropy_bound=ours.micros("entropy_bound", 100.0),
    )


def _token_limit(fields: Fields, name: str) -> int | None:
    """A limit of tokens. -1 means none, as other servers have it."""
    return None if fields.take(name) == -1 else fields.integer(name, 1, 1 << 31)


def take_stop(fields: Fields) -> tuple[str, ...]:
    """Take `stop`: a string or a list of some.

    Raises:
        ApiError: It is not such.
    """
    raw = fields.take("stop")
    stops = [raw] if isinstance(raw, str) else raw or []
    valid = isinstance(stops, list) and len(stops) <= MAX_STOP_STRINGS
    if not valid or not all(
        isinstance(s, str) and 0 < len(s) <= MAX_STOP_CHARACTERS for s in stops
    ):
        bad(f"stop is a string or up to {MAX_STOP_STRINGS} of them", "stop")
    return tuple(stops)


def take_stream(fields: Fields) -> tuple[bool, bool]:
    """Take `stream` and `stream_options`: whether to stream, and whether to end with usage.

    Raises:
        ApiError: They cannot be used.
    """
    stream = fields.flag("stream", False)
    if fields.take("stream_options") and not stream:
        bad("stream_options is for streams", "stream_options")
    options = fields.inner("stream_options")
    usage = options.flag("include_usage", False)
    # The first pads chunks, the second counts before the end. Neither changes the text.
    options.flag("include_obfuscation", False), options.flag("continuous_usage_stats", False)
    for name in options.rest():
        fields.ignore(name)
    return stream, usage


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
        shown = self._held[: max(0, len(self._held) - keep)]
        self._held = self._held[len(shown) :]
        return shown


@dataclass(frozen=True, slots=True)
class Totals:
    """What the jobs of one answer used together. Amounts in base units of `token`.

    Attributes:
        reasoning_tokens: The share of the output tokens that thoughts have by their characters. The
            receipts count tokens and do not tell them apart.
        usd_price: What one token of the currency is worth in dollars, if the gateway was told.
    """

    token: Token
    prompt_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost: int = 0
    usd_price: Decimal | None = None

    def money(self) -> dict[str, Any]:
        """The members `cost`, in tokens of the currency, and `cost_usd` if a price is known."""
        cost = Decimal(self.cost).scaleb(-self.token.decimals)
        usd = {} if self.usd_price is None else {"cost_usd": float(cost * self.usd_price)}
        return {"cost": float(cost), **usd}

    def chat_usage(self) -> dict[str, Any]:
        """The `usage` object of chat completions and completions, from the receipts."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            **self.money(),
        }

    def response_usage(self) -> dict[str, Any]:
        """The `usage` object of responses and decisions. Workers bill no prompt token as cached."""
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.prompt_tokens + self.output_tokens,
            **self.money(),
        }


def token_object(token: Token) -> dict[str, Any]:
    """What base units are counted in: a cost of 1500000 with 6 decimals is 1.5 tokens."""
    return members(token, "address", "symbol", "decimals")


def named(ignored: Iterable[str]) -> list[str]:
    """Return the names of ignored parameters that an answer shows."""
    names = list(ignored)
    more = len(names) - MAX_NAMED
    return names if more <= 0 else [*names[:MAX_NAMED], f"({more} more)"]


def derived_id(prefix: str, *of: bytes | str | int) -> str:
    """Return an id such as "call_…" that is the same whenever the same answer is shown again."""
    text = "/".join(part.hex() if isinstance(part, bytes) else str(part) for part in of)
    return f"{prefix}_{hashlib.sha256(text.encode()).hexdigest()[:24]}"


@dataclass(frozen=True, slots=True)
class Head:
    """What every piece of one answer repeats."""

    id: str
    created: int
    model: str

    def of(self, kind: str) -> dict[str, Any]:
        """The members in front of the choices."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}
