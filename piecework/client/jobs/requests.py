"""What a caller asks for, before a worker is chosen."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from piecework_protocol.content import Message
from piecework_protocol.types import Amount, Micros, Seconds

DEFAULT_MAX_TOKENS = 1024
DEFAULT_MAX_STEPS = 48
DEFAULT_TEMPERATURE_START = Micros(800_000)
DEFAULT_TEMPERATURE_END = Micros(400_000)
DEFAULT_ENTROPY_BOUND = Micros(100_000)
DEFAULT_CONFIDENCE_THRESHOLD = Micros(5_000)
DEFAULT_STABILITY_STEPS = 1
LONGEST_WITHDRAWAL_DELAY = Seconds(30 * 86400)


@dataclass(frozen=True, slots=True)
class Generation:
    """The parameters of a request; None takes what the model offers, up to the published defaults.

    The defaults are those of the released checkpoint: 48 steps at most, entropy bound 0.1,
    temperature 0.8 falling to 0.4, and a canvas is done when its argmax holds for one step at a
    mean entropy below 0.005. `seed` None is drawn at random for each job, so that a repeated prompt
    gives another text.

    Whatever is given, besides `max_tokens`, only a replayable model can honour (clause 3.10).
    """

    seed: int | None = None
    max_tokens: int | None = None
    max_steps: int | None = None
    temperature_start: Micros | None = None
    temperature_end: Micros | None = None
    entropy_bound: Micros | None = None
    confidence_threshold: Micros | None = None
    stability_steps: int | None = None

    @property
    def replayable_only(self) -> tuple[str, ...]:
        """The names of what was given and best effort cannot honour."""
        names = (f.name for f in fields(self) if f.name != "max_tokens")
        return tuple(name for name in names if getattr(self, name) is not None)


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A prompt, and what the answer may cost. `model` is a name, a digest (hex), or None for any.

    `max_price` bounds the whole job in base units. `best_effort` lets in models that honour no seed
    and leave no trace; a request that sets what they cannot honour still goes to a replayable one
    only.
    """

    messages: tuple[Message, ...]
    model: str | None = None
    generation: Generation = field(default_factory=Generation)
    max_price: Amount | None = None
    drafts: bool = False
    best_effort: bool = False


@dataclass(frozen=True, slots=True)
class Filters:
    """What the client holds every worker to."""

    now: int
    token: bytes
    max_job_price: Amount | None = None
    max_price_per_million_output: Amount | None = None
    max_withdrawal_delay: Seconds = LONGEST_WITHDRAWAL_DELAY
    second_is_worth: int = 50
