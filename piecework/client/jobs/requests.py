"""What a caller asks for, before a worker is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Self, TypeVar

from piecework.base.amounts import Token
from piecework.client.limits import BYTES_PER_TOKEN_ESTIMATE, IMAGE_TOKENS_ESTIMATE
from piecework_protocol.conversation import Conversation, Image, Message, Tool
from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds.open import OpenContent
from piecework_protocol.kinds.read import Question, ReadContent
from piecework_protocol.kinds.text import Fixed, Hole, TemplatePart, TextContent
from piecework_protocol.limits import MIN_TEMPERATURE_MICROS
from piecework_protocol.objects import ModelOffer, Parameters, Service
from piecework_protocol.service import best_effort_parameters
from piecework_protocol.types import Address, Amount, Micros, Seconds, Uint32, Uint64

DEFAULT_MAX_TOKENS = 4096
DEFAULT_MAX_STEPS = 48
DEFAULT_TEMPERATURE_START = Micros(800_000)
DEFAULT_TEMPERATURE_END = Micros(400_000)
DEFAULT_ENTROPY_BOUND = Micros(100_000)
DEFAULT_CONFIDENCE_THRESHOLD = Micros(5_000)
DEFAULT_STABILITY_STEPS = 1
BYTES_PER_TOKEN_LEAST = 1
"""Of a template's fixed parts: each token stands for at least one byte."""
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
        max_tokens: The longest answer, in tokens. If None it is the least of what the context
            leaves, the setting `default_max_tokens`, and what limits and money can pay.
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
    """A conversation to answer, and what the answer may cost.

    Attributes:
        conversation: The messages, oldest first, the tools, and whether the model thinks first.
        model: A name, a digest in hex, or None for any model.
        generation: How the text is made.
        max_price: The most that the job may cost, in base units. `Token.parse` makes them.
        drafts: Whether canvases are shown while they are denoised.
        best_effort: Lets in models that honour no seed and leave no trace. A request that sets
            what they cannot honour still goes to a replayable model.
        template: The form of the answer, fixed texts and holes. Empty: the model writes freely.
        content: What is asked for, as the worker gets it.
        prompt: Its bytes, which are sealed and signed for.

    Raises:
        MalformedInput: These do not make a content (clause 3.3).

    Example:
        >>> TextRequest.of("Tell me a story.", max_tokens=256).generation.max_tokens
        256
    """

    conversation: Conversation
    model: str | None = None
    generation: Generation = field(default_factory=Generation)
    max_price: Amount | None = None
    drafts: bool = False
    best_effort: bool = False
    template: tuple[TemplatePart, ...] = ()
    content: TextContent = field(init=False, repr=False, compare=False)
    prompt: bytes = field(init=False, repr=False, compare=False)

    kind: ClassVar = TextContent.kind
    operator: ClassVar[Address | None] = None

    def __post_init__(self) -> None:
        content = TextContent(self.conversation, self.template)
        object.__setattr__(self, "content", content)
        object.__setattr__(self, "prompt", content.encode())

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        *,
        system: str | None = None,
        images: Sequence[Image] = (),
        tools: Sequence[Tool] = (),
        thinking: bool = False,
        template: Sequence[TemplatePart] = (),
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
            prompt: What the user says, or messages, or a whole conversation.
            system: A system message in front of it.
            images: Shown before the text of the last user message.
            tools: Functions that the model may call.
            thinking: Whether the model thinks before it answers.
            template: The form of the answer: fixed texts and holes.
            model: A name, a digest in hex, or None for any model.
            max_tokens: The longest answer, in tokens.
            max_steps: Denoising steps of a canvas, at most.
            seed: 64 bits. Drawn at random if None.
            temperature: 0 to 2, as in chat APIs. `schedule` says what it means.
            max_price: The most that the job may cost, in base units.
            drafts: Whether canvases are shown while they are denoised.
            best_effort: Whether models without seed and trace will do.

        Raises:
            MalformedInput: a message is not one that the protocol can carry.
        """
        start, end = (None, None) if temperature is None else schedule(temperature)
        generation = Generation(
            seed=seed,
            max_tokens=max_tokens,
            max_steps=max_steps,
            temperature_start=start,
            temperature_end=end,
        )
        return cls(
            conversation_of(prompt, system=system, images=images, tools=tools, thinking=thinking),
            model,
            generation,
            max_price,
            drafts,
            best_effort,
            tuple(template),
        )

    def resolved(
        self, model: ModelOffer, default_max_tokens: int = DEFAULT_MAX_TOKENS
    ) -> Generation:
        """Fill what was left open with what this model offers beside the prompt.

        The length of the prompt is an estimate. The worker says in its refusal how many tokens it
        has. A template gets the most tokens that it can need.
        """
        canvas = model.canvas_size
        room = max(1, (model.max_context - self.prompt_tokens) // canvas) * canvas
        least = self._template_tokens(BYTES_PER_TOKEN_LEAST)
        usual = least or min(default_max_tokens, model.max_output, room)
        tokens = self.generation.max_tokens or usual
        steps = self.generation.max_steps or min(DEFAULT_MAX_STEPS, model.max_steps)
        return replace(self.generation, max_tokens=tokens, max_steps=steps)

    def output_tokens(self, generation: Generation, usual: float | None = None) -> int:
        """Count the output tokens that a job with a resolved generation should be charged.

        usual: how long the model's answers are. None: nobody knows, so it is as long as it may be.
        """
        tokens = generation.max_tokens or 0
        if not self.template:
            return tokens if usual is None else max(1, min(tokens, round(usual)))
        return min(tokens, self._template_tokens(BYTES_PER_TOKEN_ESTIMATE))

    @property
    def may_be_shortened(self) -> bool:
        """Whether the caller left it open how long the answer is."""
        return self.generation.max_tokens is None and not self.template

    @property
    def prompt_tokens(self) -> int:
        """Estimate the tokens of the prompt."""
        return _prompt_tokens(self.content.conversation.text_bytes, self.content.conversation)

    def _template_tokens(self, bytes_per_token: int) -> int:
        fixed = (part.text for part in self.template if isinstance(part, Fixed))
        holes = sum(part.tokens for part in self.template if isinstance(part, Hole))
        return holes + sum(-(-len(text.encode()) // bytes_per_token) for text in fixed)


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Questions to decide, and what the answers may cost. No text is written.

    Attributes:
        conversation: What the questions are about.
        questions: What to decide, each with the labels to choose from.
        draws: How often each question is answered, over other noise. The spread of the answers is
            their standard error.
        model, max_price, best_effort: As in `TextRequest`.
        seed: 64 bits. If None it is drawn at random for each job.
        content: What is asked for, as the worker gets it.
        prompt: Its bytes, which are sealed and signed for.

    Raises:
        MalformedInput: These do not make a content (clause 3.3).
    """

    conversation: Conversation
    questions: tuple[Question, ...]
    draws: int = 1
    model: str | None = None
    seed: int | None = None
    max_price: Amount | None = None
    best_effort: bool = False
    content: ReadContent = field(init=False, repr=False, compare=False)
    prompt: bytes = field(init=False, repr=False, compare=False)

    kind: ClassVar = ReadContent.kind
    operator: ClassVar[Address | None] = None
    drafts: ClassVar = False
    may_be_shortened: ClassVar = False

    def __post_init__(self) -> None:
        content = ReadContent(self.conversation, self.questions, self.draws)
        object.__setattr__(self, "content", content)
        object.__setattr__(self, "prompt", content.encode())

    @property
    def generation(self) -> Generation:
        """What the caller has set."""
        return Generation(seed=self.seed)

    def resolved(
        self, model: ModelOffer, default_max_tokens: int = DEFAULT_MAX_TOKENS
    ) -> Generation:
        """Give the one form that a read has: so many canvases, and one step on each."""
        tokens = self.content.canvases(model.canvas_size) * model.canvas_size
        return Generation(seed=self.seed, max_tokens=tokens, max_steps=1, stability_steps=0)

    def output_tokens(self, generation: Generation, usual: float | None = None) -> int:
        """Count the output tokens that are charged: none."""
        return 0

    @property
    def prompt_tokens(self) -> int:
        """Estimate the tokens of the prompt."""
        return _prompt_tokens(self.content.text_bytes, self.content.conversation)


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """Steps of an earlier canvas that its worker is to open. No text is written.

    Attributes:
        content: Which steps, as the worker gets it.
        operator: The worker that made the canvas.
        model: The digest of the job's model, in hex.
        max_price: As in `TextRequest`.
        prompt: The bytes of the content, which are sealed and signed for.
    """

    content: OpenContent
    operator: Address
    model: str
    max_price: Amount | None = None
    prompt: bytes = field(init=False, repr=False, compare=False)

    kind: ClassVar = OpenContent.kind
    drafts: ClassVar = False
    may_be_shortened: ClassVar = False
    best_effort: ClassVar = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", self.content.encode())

    @property
    def generation(self) -> Generation:
        """What the caller has set: nothing."""
        return Generation()

    def resolved(
        self, model: ModelOffer, default_max_tokens: int = DEFAULT_MAX_TOKENS
    ) -> Generation:
        """Give the one form that an opening has: a canvas for each step, and one step on each."""
        tokens = len(self.content.steps) * model.canvas_size
        return Generation(seed=0, max_tokens=tokens, max_steps=1, stability_steps=0)

    def output_tokens(self, generation: Generation, usual: float | None = None) -> int:
        """Count the output tokens that are charged: none."""
        return 0

    @property
    def prompt_tokens(self) -> int:
        """Count the tokens before the canvas."""
        return self.content.context


def _prompt_tokens(text_bytes: int, conversation: Conversation) -> int:
    """Estimate the tokens of a prompt with so many bytes of text and the conversation's images."""
    images = sum(len(message.images) for message in conversation.messages)
    return 1 + text_bytes // BYTES_PER_TOKEN_ESTIMATE + images * IMAGE_TOKENS_ESTIMATE


JobRequest = TextRequest | ReadRequest | OpenRequest
"""What a client can ask for."""
Prompt = str | Sequence[Message] | Conversation
"""What the user says, or messages, or a whole conversation."""


def conversation_of(
    prompt: Prompt,
    *,
    system: str | None = None,
    images: Sequence[Image] = (),
    tools: Sequence[Tool] = (),
    thinking: bool = False,
) -> Conversation:
    """Return a prompt as a conversation, with a system message in front, and with images and tools
    added.

    Raises:
        MalformedInput: It is not one that the protocol can carry.
    """
    if isinstance(prompt, str):
        prompt = (Message("user", prompt),)
    if not isinstance(prompt, Conversation):
        prompt = Conversation(tuple(prompt))
    messages = _showing(prompt.messages, images)
    if system is not None:
        messages = (Message("system", system), *messages)
    return Conversation(messages, (*prompt.tools, *tools), prompt.thinking or thinking)


def _showing(messages: tuple[Message, ...], images: Sequence[Image]) -> tuple[Message, ...]:
    """Put images before the content of the last user message."""
    if not images:
        return messages
    last = max((i for i, m in enumerate(messages) if m.role == "user"), default=None)
    if last is None:
        raise MalformedInput("images belong to a user message, and there is none")
    shown = replace(messages[last], content=(*images, *messages[last].parts))
    return (*messages[:last], shown, *messages[last + 1 :])


def schedule(temperature: float) -> tuple[Micros, Micros]:
    """Return the first and the last step's temperature for one of chat APIs.

    1 is the published schedule, 0.8 falling to 0.4. Others are in proportion. 0 is the least that
    a model takes.
    """
    start, end = (
        Micros(max(MIN_TEMPERATURE_MICROS, round(temperature * default)))
        for default in (DEFAULT_TEMPERATURE_START, DEFAULT_TEMPERATURE_END)
    )
    return start, end


@dataclass(frozen=True, slots=True)
class Filters:
    """What the client holds every worker to. Amounts are base units of `token`.

    `price_cap`: how many times the median a job may cost. None: any number. `max_fee`: the most
    that a worker may ask for sending a transaction. `deposit`: what a channel is opened with. A
    job takes a part of it, and that part of the fee for the opening. `left`: what the budgets have
    left. `default_max_tokens`: the longest answer of a request that does not say.
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
    left: Amount | None = None
    default_max_tokens: int = DEFAULT_MAX_TOKENS


def job_parameters(model: ModelOffer, generation: Generation, seed: int) -> Parameters:
    """Give the parameters to sign for a model, with every open value resolved.

    `generation` has its token and step limits (`TextRequest.resolved`). A best-effort model takes
    the token limit and nothing else.
    """
    g = generation
    tokens = Uint32(g.max_tokens or 0)
    if model.service is Service.BEST_EFFORT:
        return best_effort_parameters(tokens)
    return Parameters(
        seed=Uint64(seed),
        max_tokens=tokens,
        max_steps=Uint32(g.max_steps or 0),
        temperature_start=_warm(g.temperature_start, DEFAULT_TEMPERATURE_START),
        temperature_end=_warm(g.temperature_end, DEFAULT_TEMPERATURE_END),
        entropy_bound=_given(g.entropy_bound, DEFAULT_ENTROPY_BOUND),
        confidence_threshold=_given(g.confidence_threshold, DEFAULT_CONFIDENCE_THRESHOLD),
        stability_steps=Uint32(_given(g.stability_steps, DEFAULT_STABILITY_STEPS)),
        service=Service.REPLAYABLE,
    )


def _given(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _warm(value: Micros | None, default: Micros) -> Micros:
    """A temperature that a model takes. 0 means the least one."""
    return Micros(max(MIN_TEMPERATURE_MICROS, _given(value, default)))
