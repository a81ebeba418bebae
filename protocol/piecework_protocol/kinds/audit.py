"""Kind `audit`: another worker computes a canvas again and says whether it is what was delivered.

The content is a claim about one canvas, and names neither its worker nor its payer. It has what the
canvas follows from, what was delivered of it, and the root of its trace. It does not have the step
leaves. The auditor's own step leaves are those of its receipt, so it cannot say that a canvas
passes without them: it has to compute them.

The output is the auditor's report. The receipt signs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final

from piecework_protocol.content import (
    CONTENT_VERSION,
    content_bytes,
    output_bytes,
    output_reader,
    versioned_reader,
)
from piecework_protocol.encoding import Reader, Writer
from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds.read import ReadContent, ReadOutput
from piecework_protocol.kinds.text import TextContent, TextOutput
from piecework_protocol.limits import (
    MAX_AUDIT_FINDINGS,
    MAX_CANVAS_TOKENS,
    MAX_CANVASES_PER_JOB,
    MAX_DENOISING_STEPS,
    MAX_FINDING_BYTES,
    MAX_NAME_BYTES,
)
from piecework_protocol.merkle import EMPTY_ROOT
from piecework_protocol.objects import AuditLevel, AuditOutcome, Finish, Kind, Parameters, Service
from piecework_protocol.outlines import AuditedClaim, Outline
from piecework_protocol.trace import trace_root
from piecework_protocol.types import (
    DIGEST_BYTES,
    Digest,
    Micros,
    Uint32,
    Uint64,
    keccak256,
)

Asked = TextContent | ReadContent
"""What the audited job asked for."""
Told = TextOutput | ReadOutput
"""What was delivered of the audited canvas."""

_KINDS: Final[Mapping[Kind, tuple[Callable[[bytes], Asked], Callable[[bytes], Told]]]] = {
    Kind.TEXT: (TextContent.decode, TextOutput.decode),
    Kind.READ: (ReadContent.decode, ReadOutput.decode),
}
_PARAMETER_BYTES: Final = (8, 4, 4, 4, 4, 4, 4, 4)
"""Of the parameters in their order, without the service: only replayable jobs are audited."""


@dataclass(frozen=True)
class AuditContent:
    """The exact content of an audit job: a claim about one canvas of another job.

    level: only REPLAY is sold. profile: the engine profile that computed the canvas.
    job_kind, parameters, job_content: those of the audited job; the last is its content digest.
    asked: the bytes of its content.
    canvas: which one. committed: all ids of each canvas before it, none of a read.
    output: the bytes of what was delivered of the canvas.
    steps, finish, prompt_tokens, trace_root: what its receipt says.

    Raises:
        MalformedInput: A member is out of range, or they do not fit together.
    """

    level: AuditLevel
    profile: str
    job_kind: Kind
    parameters: Parameters
    job_content: Digest
    asked: bytes
    canvas: int
    committed: tuple[tuple[int, ...], ...]
    output: bytes
    steps: int
    finish: Finish
    prompt_tokens: int
    trace_root: Digest

    kind: ClassVar = Kind.AUDIT

    def __post_init__(self) -> None:
        if self.level is not AuditLevel.REPLAY or self.job_kind not in _KINDS:
            raise MalformedInput("an audit job is a replay of a text or a read")
        if self.parameters.service is not Service.REPLAYABLE:
            raise MalformedInput("a canvas that was served at best effort cannot be audited")
        if not 1 <= len(self.profile.encode()) <= MAX_NAME_BYTES:
            raise MalformedInput(f"a profile has 1 to {MAX_NAME_BYTES} bytes")
        if not 0 <= self.canvas < MAX_CANVASES_PER_JOB:
            raise MalformedInput(f"a job has at most {MAX_CANVASES_PER_JOB} canvases")
        if not 1 <= self.steps <= MAX_DENOISING_STEPS or not 1 <= self.prompt_tokens < 2**31:
            raise MalformedInput("an audited canvas has steps and a prompt")
        if len(self.job_content) != DIGEST_BYTES or len(self.trace_root) != DIGEST_BYTES:
            raise MalformedInput(f"a content digest and a trace root have {DIGEST_BYTES} bytes")
        self._check_before()
        _ = self.content, self.told  # both parse

    def _check_before(self) -> None:
        if self.job_kind is Kind.READ:
            if self.committed:
                raise MalformedInput("no canvas of a read is in the context of another")
            return
        sizes = {len(ids) for ids in self.committed}
        if len(self.committed) != self.canvas or len(sizes) > 1:
            raise MalformedInput("an audit of a text has every whole canvas before it")
        if self.canvas and not 1 <= min(sizes) <= MAX_CANVAS_TOKENS:
            raise MalformedInput(f"a canvas has 1 to {MAX_CANVAS_TOKENS} tokens")
        if self.canvas and isinstance(self.content, TextContent) and self.content.template:
            raise MalformedInput("only the first canvas of a template can be audited by others")

    @cached_property
    def content(self) -> Asked:
        """What the audited job asked for."""
        return _KINDS[self.job_kind][0](self.asked)

    @cached_property
    def told(self) -> Told:
        """What was delivered of the canvas."""
        return _KINDS[self.job_kind][1](self.output)

    @property
    def has_images(self) -> bool:
        """Whether the audited job shows images."""
        return self.content.has_images

    @property
    def text_bytes(self) -> int:
        """Count the bytes of the texts that the auditor tokenizes."""
        return self.content.text_bytes

    @property
    def least_tokens(self) -> int:
        """Count the tokens that the audited job takes at least, with the canvases before."""
        return self.context + self.content.least_tokens

    @property
    def context(self) -> int:
        """Count the tokens that stand between the prompt and the canvas."""
        return sum(map(len, self.committed))

    @property
    def claim(self) -> AuditedClaim:
        """What the report must name."""
        return AuditedClaim(self.trace_root, _subject(self.level, self.profile), self.steps)

    @property
    def outline(self) -> Outline:
        """What a client keeps to hold outputs to it."""
        return Outline(self.content.outline.prompt_tokens + self.context, audited=self.claim)

    def parameters_fault(self, parameters: Parameters, canvas_size: int) -> str | None:
        """Say what of a job's parameters contradicts the content, or None."""
        if parameters.service is not Service.REPLAYABLE:
            return "a model that is served at best effort replays nothing"
        if parameters.max_tokens != canvas_size:
            return f"max_tokens is {parameters.max_tokens}, an audit is of {canvas_size} positions"
        if parameters.max_steps != self.steps:
            return f"max_steps is {parameters.max_steps}, the audited canvas has {self.steps}"
        if any(len(ids) != canvas_size for ids in self.committed):
            return f"a canvas has {canvas_size} tokens"
        return self.content.parameters_fault(self.parameters, canvas_size)

    def encode(self) -> bytes:
        """Encode it: the version byte, then the members in their order.

        Raises:
            MalformedInput: It is too long.
        """
        writer = Writer()
        writer.number(CONTENT_VERSION, 1)
        writer.number(self.level, 1)
        writer.text(self.profile)
        writer.number(self.job_kind, 1)
        for value, width in zip(_values(self.parameters), _PARAMETER_BYTES, strict=True):
            writer.number(value, width)
        writer.data(self.job_content)
        writer.data(self.asked)
        writer.number(self.canvas, 4)
        writer.number(len(self.committed), 4)
        for ids in self.committed:
            _write_ids(writer, ids)
        writer.data(self.output)
        writer.number(self.steps, 4)
        writer.number(self.finish, 1)
        writer.number(self.prompt_tokens, 4)
        writer.data(self.trace_root)
        return content_bytes(writer)

    @classmethod
    def decode(cls, data: bytes) -> AuditContent:
        """Parse what `encode` makes, strictly.

        Raises:
            MalformedInput: The bytes are not such.
        """
        reader = versioned_reader(data, "an audit")
        try:
            content = cls(
                level=AuditLevel(reader.number(1)),
                profile=reader.text(),
                job_kind=Kind(reader.number(1)),
                parameters=_parameters(reader),
                job_content=Digest(reader.data()),
                asked=reader.data(),
                canvas=reader.number(4),
                committed=reader.items(_read_ids, MAX_CANVASES_PER_JOB),
                output=reader.data(),
                steps=reader.number(4),
                finish=Finish(reader.number(1)),
                prompt_tokens=reader.number(4),
                trace_root=Digest(reader.data()),
            )
        except ValueError:
            raise reader.fail("names a level, kind or finish that does not exist") from None
        reader.end()
        return content


NOTHING: Final = Digest(EMPTY_ROOT)


@dataclass(frozen=True, slots=True)
class AuditOutput:
    """The auditor's report. It is empty for an audit that was cancelled.

    level, profile, trace_root: of what was audited, as the content has them.
    outcome: PASS or FAIL. One that cannot audit fails the job instead, and is paid nothing.
    canvas_leaf: the canvas leaf that the auditor computed. Its step leaves stand in its receipt.
    steps: that the canvas takes, at most those that were charged.
    prompt_tokens: that the prompt of the audited job has.
    findings: what is wrong, a line each. There are some if and only if it failed.

    Raises:
        MalformedInput: The members do not fit together.
    """

    level: AuditLevel = AuditLevel.REPLAY
    profile: str = ""
    trace_root: Digest = NOTHING
    outcome: AuditOutcome = AuditOutcome.NO_VERDICT
    canvas_leaf: Digest = NOTHING
    steps: int = 0
    prompt_tokens: int = 0
    findings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.findings) > MAX_AUDIT_FINDINGS or any(
            not 1 <= len(line.encode()) <= MAX_FINDING_BYTES for line in self.findings
        ):
            raise MalformedInput(
                f"a report has at most {MAX_AUDIT_FINDINGS} findings of {MAX_FINDING_BYTES} bytes"
            )
        if len(self.profile.encode()) > MAX_NAME_BYTES:
            raise MalformedInput(f"a profile has at most {MAX_NAME_BYTES} bytes")
        if len(self.trace_root) != DIGEST_BYTES or len(self.canvas_leaf) != DIGEST_BYTES:
            raise MalformedInput(f"a trace root and a leaf have {DIGEST_BYTES} bytes")
        if bool(self.findings) is not (self.outcome is AuditOutcome.FAIL):
            raise MalformedInput("a report has findings if the canvas failed, and only then")
        if self.outcome is AuditOutcome.NO_VERDICT and self.profile:
            raise MalformedInput("a report says that the canvas passed or failed")

    @property
    def units(self) -> int:
        """What a receipt charges beside the steps: no output tokens."""
        return 0

    def fault(self, outline: Outline, canvas: int, canvas_size: int, finish: Finish) -> str | None:
        """Say what contradicts the content in a finished audit, or None (clauses 4.2 and 4.5)."""
        claim = outline.audited
        if claim is None or canvas or self.outcome is AuditOutcome.NO_VERDICT:
            return "there is no such canvas to audit"
        if (self.trace_root, _subject(self.level, self.profile)) != (claim.root, claim.subject):
            return "the report is about another canvas than the one that was asked about"
        if not 1 <= self.steps <= claim.steps:
            return f"the canvas was claimed to have {claim.steps} steps"
        if finish is not Finish.END_OF_TEXT:
            return "an audit ends with its canvas"
        return None

    def replayed_root(self, leaves: Sequence[Digest]) -> Digest:
        """Give the root of the trace that the auditor computed.

        leaves: of the audit's own canvas, whose first is its canvas leaf.
        """
        return trace_root((self.canvas_leaf, *leaves[1:]))

    def leaves_fault(self, leaves: Sequence[Digest]) -> str | None:
        """Say what contradicts the report in the leaves of its receipt, or None."""
        if len(leaves) != self.steps + 1:
            return "the report counts other steps than its receipt"
        passed = self.outcome is AuditOutcome.PASS
        if passed and self.replayed_root(leaves) != self.trace_root:
            return "the canvas passed, and the auditor's own trace is another"
        return None

    def encode(self) -> bytes:
        """Encode the members in their order.

        Raises:
            MalformedInput: It is too long.
        """
        writer = Writer()
        writer.number(self.level, 1)
        writer.text(self.profile)
        writer.data(self.trace_root)
        writer.number(self.outcome, 1)
        writer.data(self.canvas_leaf)
        writer.number(self.steps, 4)
        writer.number(self.prompt_tokens, 4)
        writer.number(len(self.findings), 4)
        for line in self.findings:
            writer.text(line)
        return output_bytes(writer)

    @classmethod
    def decode(cls, data: bytes) -> AuditOutput:
        """Parse what `encode` makes.

        Raises:
            MalformedInput: The bytes are not such.
        """
        reader = output_reader(data)
        try:
            output = cls(
                level=AuditLevel(reader.number(1)),
                profile=reader.text(),
                trace_root=Digest(reader.data()),
                outcome=AuditOutcome(reader.number(1)),
                canvas_leaf=Digest(reader.data()),
                steps=reader.number(4),
                prompt_tokens=reader.number(4),
                findings=reader.items(Reader.text, MAX_AUDIT_FINDINGS),
            )
        except ValueError:
            raise reader.fail("names a level or an outcome that does not exist") from None
        reader.end()
        return output


def _subject(level: AuditLevel, profile: str) -> Digest:
    return Digest(keccak256(bytes((level,)) + profile.encode()))


def _values(parameters: Parameters) -> tuple[int, ...]:
    names = parameters.__dataclass_fields__
    return tuple(getattr(parameters, name) for name in names if name != "service")


def _parameters(reader: Reader) -> Parameters:
    seed, tokens, steps, start, end, bound, confidence, stable = map(
        reader.number, _PARAMETER_BYTES
    )
    return Parameters(
        seed=Uint64(seed),
        max_tokens=Uint32(tokens),
        max_steps=Uint32(steps),
        temperature_start=Micros(start),
        temperature_end=Micros(end),
        entropy_bound=Micros(bound),
        confidence_threshold=Micros(confidence),
        stability_steps=Uint32(stable),
        service=Service.REPLAYABLE,
    )


def _write_ids(writer: Writer, ids: Sequence[int]) -> None:
    writer.number(len(ids), 4)
    for token in ids:
        writer.number(token, 4)


def _read_ids(reader: Reader) -> tuple[int, ...]:
    return reader.items(lambda r: r.number(4), MAX_CANVAS_TOKENS)
