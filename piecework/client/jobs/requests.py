"""What a caller asks for, before a worker is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Self, TypeVar

from piecework.base.amounts import Token
from piecework_protocol.conversation import Message
from piecework_protocol.kinds.text import encode_messages
from piecework_protocol.objects import ModelOffer, Parameters, Service
from piecework_protocol.service import best_effort_parameters
from piecework_protocol.types import Amount, Micros, Seconds, Uint32, Uint64

DEFAULT_MAX_TOKENS = 1024
DEFAULT_MAX_STEPS = 48
DEFAULT_TEMPERATURE_START = Micros(800_000)
DEFAULT_TEMPERATURE_END = Micros(400_000)
DEFAULT_ENTROPY_BOUND = Micros(100_000)
DEFAULT_CONFIDENCE_THRESHOLD = Micros(5_000)
DEFAULT_STABILITY_STEPS = 1
LONGEST_WITHDRAWAL_DELAY = Seconds(30 * 86400)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Generation:
    """The parameters of a request. None takes what the model offers, up to the published defaults.

    The defaults are those of the released checkpoint: 48 steps at most, entropy bound 0.1,
    temperature 0.8 falling to 0.4. A canvas is done when its argmax holds for one step at a mean
    entropy below 0.005.

    Only a replayable model can honour what is given besides `max_tokens` (clause 3.10).

    Attributes:
        seed: 64 bits. If None it is drawn at random for each job, so a repeated prompt gives
            another text.
        max_tokens: The longest answer, in tokens.
        max_steps: Denoising steps of a canvas, at most.
        temperature_start: Temperature at the first step, in millionths.
        temperature_end: Temperature at the last step, in millionths.
        entropy_bound: Bound of the sampler, in millionths.
        confidence_threshold: Mean entropy below which a canvas may be done, in millionths.
        stability_steps: Steps for which the argmax must hold.
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
        """The names of what was given and a best-effort model cannot honour."""
        names = (f.name for f in fields(self) if f.name != "max_tokens")
        return tuple(name for name in names if getattr(self, name) is not None)


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A prompt, and what the answer may cost.

    Attributes:
        messages: The conversation, oldest first.
        model: A name, a digest in hex, or None for any model.
        generation: How the text is made.
        max_price: The most that the job may cost, in base units. `Token.parse` makes them.
        drafts: Whether canvases are shown while they are denoised.
        best_effort: Lets in models that honour no seed and leave no trace. A request that sets
            what they cannot honour still goes to a replayable model.
        prompt: The bytes that are sealed and signed for.

    Raises:
        MalformedInput: The messages do not make a prompt (clause 3.3).

    Example:
        >>> TextRequest.of("Tell me a story.", max_tokens=256).generation.max_tokens
        256
    """

    messages: tuple[Message, ...]
    model: str | None = None
    generation: Generation = field(default_factory=Generation)
    max_price: Amount | None = None
    drafts: bool = False
    best_effort: bool = False
    prompt: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", encode_messages(self.messages))

    @classmethod
    def of(
        cls,
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        model: str | None = None,
        max_tokens: int | None = None,
        max_steps: int | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        max_price: Amount | None = None,
        drafts: bool = False,
        best_effort: bool = False,
    ) -> Self:
        """Return a request for the usual case.

        Args:
            prompt: What the user says, or a whole conversation.
            system: A system message in front of it.
            model: A name, a digest in hex, or None for any model.
            max_tokens: The longest answer, in tokens.
            max_steps: Denoising steps of a canvas, at most.
            seed: 64 bits. Drawn at random if None.
            temperature: Temperature at the last step, 0 to 2. The first step's is at least 0.8.
            max_price: The most that the job may cost, in base units.
            drafts: Whether canvases are shown while they are denoised.
            best_effort: Whether models without seed and trace will do.

        Raises:
            MalformedInput: a message is not one that the protocol can carry.
        """
        messages = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
        if system is not None:
            messages.insert(0, Message("system", system))
        end = None if temperature is None else Micros(round(temperature * 1_000_000))
        generation = Generation(
            seed=seed,
            max_tokens=max_tokens,
            max_steps=max_steps,
            temperature_start=None if end is None else start_above(end),
            temperature_end=end,
        )
        return cls(tuple(messages), model, generation, max_price, drafts, best_effort)


def start_above(end: Micros) -> Micros:
    """Return the first step's temperature for one that was given for the last step."""
    return max(DEFAULT_TEMPERATURE_START, end)


@dataclass(frozen=True, slots=True)
class Filters:
    """What the client holds every worker to. Amounts are base units of `token`.

    `price_cap`: how many times the median a job may cost. None: any number. `max_fee`: the most
    that a worker may ask for sending a transaction. `deposit`: what a channel is opened with. A
    job takes a part of it, and that part of the fee for the opening.
    """

    now: int
    token: Token
    max_job_price: Amount | None = None
    max_price_per_million_output: Amount | None = None
    max_withdrawal_delay: Seconds = LONGEST_WITHDRAWAL_DELAY
    second_is_worth: float = 50.0
    price_cap: float | None = None
    max_fee: Amount | None = None
    deposit: Amount = Amount(0)


def job_parameters(model: ModelOffer, generation: Generation, seed: int) -> Parameters:
    """Give the parameters to sign for a model, with every open value resolved.

    `generation` has its token and step limits (`selection.resolve`). A best-effort model takes the
    token limit and nothing else.
    """
    g = generation
    tokens = Uint32(g.max_tokens or 0)
    if model.service is Service.BEST_EFFORT:
        return best_effort_parameters(tokens)
    return Parameters(
        seed=Uint64(seed),
        max_tokens=tokens,
        max_steps=Uint32(g.max_steps or 0),
        temperature_start=_given(g.temperature_start, DEFAULT_TEMPERATURE_START),
        temperature_end=_given(g.temperature_end, DEFAULT_TEMPERATURE_END),
        entropy_bound=_given(g.entropy_bound, DEFAULT_ENTROPY_BOUND),
        confidence_threshold=_given(g.confidence_threshold, DEFAULT_CONFIDENCE_THRESHOLD),
        stability_steps=Uint32(_given(g.stability_steps, DEFAULT_STABILITY_STEPS)),
        service=Service.REPLAYABLE,
    )


def _given(value: _T | None, default: _T) -> _T:
    return default if value is None else value
