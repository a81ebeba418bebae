"""The audit of one canvas of a job, from its evidence file.

`JobAudit` knows the job: its request, its canvases, what its worker signed. It finds what is wrong
by replay or by a forced pass, and says when this machine cannot say anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

from piecework_model import kinds, templates
from piecework_model.audit.claims import ClaimedCanvas, ClaimedJob, Ids
from piecework_model.audit.forced import ForcedPass
from piecework_model.audit.judgement import (
    Failure,
    Judgement,
    Pairing,
    Table,
    Tails,
    arithmetic,
    judge,
)
from piecework_model.audit.opening import OpenedStep
from piecework_model.audit.replay import Replayer, first_difference
from piecework_model.audit.scores import scores
from piecework_model.charging import Charge, charge_of
from piecework_model.checkpoint.loading import DescribedModel
from piecework_model.errors import (
    AuditError,
    ModelError,
    OpeningError,
    PromptError,
    RequestError,
)
from piecework_model.jobs import generation_request
from piecework_model.machine.probe import ProfilePrecision, read_precision
from piecework_model.precision import precision_name
from piecework_model.requests import HOLE, CanvasFinish, GenerationRequest
from piecework_model.text.segments import SegmentStream
from piecework_protocol.kinds import KINDS
from piecework_protocol.kinds.read import ReadOutput
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.objects import AuditLevel, AuditOutcome, Finish, Kind
from piecework_protocol.trace import CanvasRecord, StepRecord, pinned_root, read_ids, trace_root

Control = Callable[[GenerationRequest, int | None], Sequence[OpenedStep]]
"""Makes the canvas that a request goes on with, in the worker's precision, and opens its steps: so
many of a canvas that was cancelled, or all."""


class ComputedCanvas(Protocol):
    """A canvas that was computed again. `records` are what its step leaves commit to."""

    @property
    def records(self) -> tuple[StepRecord, ...]: ...
    @property
    def token_ids(self) -> Ids: ...
    @property
    def answers(self) -> tuple[Ids, ...]: ...
    @property
    def finished(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class CanvasAudit:
    """What an audit of a canvas found.

    findings: what is wrong, one line each, if the outcome is FAIL. reason: why there is no verdict.
    steps: of the canvas. leaves: of the steps that a replay has computed. statistical: honest
    canvases show such findings now and then, so one canvas is not enough.
    """

    level: AuditLevel
    outcome: AuditOutcome
    canvas: int
    steps: int
    findings: tuple[str, ...] = ()
    reason: str = ""
    leaves: tuple[bytes, ...] = ()
    statistical: bool = False


def pairing_of(
    claimed: ClaimedJob, said: ProfilePrecision, dtype: str, quantization: str, device: str
) -> Pairing:
    """Say by which thresholds a job is judged.

    said: the worker's precision. The others are the auditor's.
    """
    worker = precision_name(said.dtype, said.quantization)
    return Pairing(
        claimed.model.hex(),
        "read" if claimed.kind is Kind.READ else "text",
        arithmetic(worker, "cpu" if said.threads else "cuda"),
        arithmetic(precision_name(dtype, quantization), device),
    )


class JobAudit:
    """One job and the auditor's model of the same digest."""

    def __init__(self, claimed: ClaimedJob, loaded: DescribedModel) -> None:
        """Encode the job's content.

        loaded: its weights are not needed here.

        Raises:
            AuditError: The job is not one of this model.
        """
        if claimed.model != loaded.digest:
            raise AuditError("the job is of another model than the one here")
        self._claimed, self._loaded = claimed, loaded
        limits = loaded.limits
        try:
            content = kinds.encode(loaded, claimed.content, limits.canvas_size, limits.max_context)
        except PromptError as error:
            raise AuditError(f"this model cannot be asked that: {error}") from error
        self._request = generation_request(
            "audit",
            content,
            claimed.parameters,
            canvas_limit=1,
            committed=(),
            drafts=False,
        )

    @property
    def profile(self) -> str:
        """The engine profile that the worker's offer names."""
        return self._claimed.profile

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has here."""
        return len(self._request.prompt_ids)

    def request_of(self, canvas: int) -> GenerationRequest:
        """Return the request that goes on with a canvas.

        Raises:
            AuditError: A canvas before it is not known in full.
        """
        committed = tuple(ids for index in range(canvas) if (ids := self._known(index)) is not None)
        if len(committed) < canvas:
            raise AuditError("a canvas before it is not known in full")
        return replace(self._request, committed=committed)

    def replay(self, replayer: Replayer, canvas: int) -> CanvasAudit:
        """Compare a canvas with a replay on the worker's own profile.

        Raises:
            AuditError: The replay failed here.
        """
        shown = self._shown(canvas)
        steps = int(shown.steps)
        if not steps:
            return self._no_verdict(AuditLevel.REPLAY, canvas, "it has no denoising step")
        replayed: ComputedCanvas | None = None
        committed: list[Ids] = []
        try:
            for index in range(canvas + 1):
                known = self._known(index) if index < canvas else None
                if known is None:
                    request = replace(self._request, committed=tuple(committed))
                    made = replayer.replay(request, steps=steps if index == canvas else None)
                    replayed, known = made, made.token_ids
                committed.append(known)
        except RequestError as error:
            raise AuditError(f"this job cannot be replayed: {error}") from error
        if replayed is None:
            raise AuditError("nothing was replayed")
        return self.judged(canvas, replayed, tuple(committed[:-1]))

    def judged(
        self, canvas: int, replayed: ComputedCanvas, committed: tuple[Ids, ...]
    ) -> CanvasAudit:
        """Compare what was claimed of a canvas with its replay.

        committed: all ids of the canvases before it.

        Raises:
            AuditError: Nothing is claimed of this canvas.
        """
        shown = self._shown(canvas)
        found = self._differences(shown, replayed, committed)
        outcome = AuditOutcome.FAIL if found else AuditOutcome.PASS
        leaves = tuple(bytes(record.leaf()) for record in replayed.records)
        level, steps = AuditLevel.REPLAY, int(shown.steps)
        return CanvasAudit(level, outcome, canvas, steps, tuple(found), leaves=leaves)

    def forced_lacks(self, table: Table, canvas: int) -> str:
        """Say why a forced audit of a canvas has no verdict whatever is opened, or return ""."""
        pairing = self._pairing()
        if pairing is None:
            return f"the worker's profile names no precision: {self.profile}"
        if pairing not in table:
            worker, here = pairing.worker, pairing.auditor
            reason = f"no thresholds for a worker in {worker} and an auditor in {here}"
            return f"{reason} with this model"
        try:
            self.request_of(canvas)
        except AuditError as error:
            return str(error)
        return ""

    def _pairing(self) -> Pairing | None:
        """Say by which thresholds this job is judged here. None: its profile tells too little."""
        said, loaded = read_precision(self.profile), self._loaded
        if said is None:
            return None
        return pairing_of(self._claimed, said, loaded.dtype, loaded.quantization, loaded.device)

    def forced(
        self,
        auditor: ForcedPass,
        table: Table,
        canvas: int,
        opened: Sequence[OpenedStep],
        control: Control | None = None,
    ) -> CanvasAudit:
        """Judge the opened steps of a canvas. Their leaves were compared by the caller.

        control: makes the canvas here, if this one looks wrong. How far off a canvas is depends on
            its prompt more than on anything else. So one whose control looks wrong too has no
            verdict.

        Raises:
            AuditError: The model failed here.
        """
        level, pairing = AuditLevel.FORCED, self._pairing()
        lacking = self.forced_lacks(table, canvas)
        if lacking or pairing is None:
            return self._no_verdict(level, canvas, lacking)
        request = self.request_of(canvas)
        certain, tails = _misplaced(opened, canvas), table[pairing]
        judged = Judgement(())
        if not certain:
            try:
                judged = judge(scores(auditor.figures(request, opened)), tails)
            except OpeningError as error:  # whoever saved the file may have left steps out
                return self._no_verdict(level, canvas, str(error))
        shown, last = self._shown(canvas), opened[-1]
        if last.step + 1 == shown.steps and shown.finish is not Finish.CANCELLED:
            ids = tuple(int(token) for token in last.argmax)
            certain += self._output_differences(shown, ids, None, request.committed)
        found = (*map(_words_of, judged.failures), *certain)
        outcome = AuditOutcome.FAIL if found else AuditOutcome.PASS
        statistical = not (certain or judged.passed or judged.decides)
        if statistical and control is not None:
            most = int(shown.steps) if shown.finish is Finish.CANCELLED else None
            made = partial(control, request, most)
            if excuse := _excuse(auditor, request, made, tails):
                return self._no_verdict(level, canvas, f"{excuse}. {found[0]}")
        return CanvasAudit(level, outcome, canvas, int(shown.steps), found, statistical=statistical)

    def impossible(self, canvas: int, found: str) -> CanvasAudit:
        """Say that a step of a canvas is none that this model makes. Its leaf commits to it."""
        steps = int(self._shown(canvas).steps)
        return CanvasAudit(AuditLevel.FORCED, AuditOutcome.FAIL, canvas, steps, (found,))

    def _shown(self, canvas: int) -> ClaimedCanvas:
        return self._claimed.canvas(canvas)

    def _known(self, canvas: int) -> Ids | None:
        """Return the ids of a canvas that the engine committed, if the evidence tells them."""
        size, request = self._loaded.limits.canvas_size, self._request
        if request.reads:
            pins = templates.pins(request, canvas, size)
            return tuple(0 if entry == HOLE else entry for entry in pins)
        ids = self._claimed.ids.get(canvas)
        return None if request.template or ids is None or len(ids) != size else ids

    def _differences(
        self, shown: ClaimedCanvas, replayed: ComputedCanvas, committed: tuple[Ids, ...]
    ) -> list[str]:
        """List what differs between what the worker signed and the replay."""
        found, records = list[str](), replayed.records
        leaves = (self.canvas_record(committed).leaf(), *(record.leaf() for record in records))
        if trace_root(leaves) != shown.trace_root:
            found.append(_trace_difference(leaves, shown.leaves))
        if len(records) != shown.steps:
            found.append(f"{shown.steps} steps are charged, and the canvas takes {len(records)}")
        if self.prompt_tokens != shown.prompt_tokens:
            # Also of a canvas that was cancelled: all of the prompt comes before the first step.
            found.append(
                f"{shown.prompt_tokens} prompt tokens are charged, and the prompt has "
                f"{self.prompt_tokens}"
            )
        if shown.finish is Finish.CANCELLED:
            return found + self._draft_differences(shown, replayed, committed)
        if not replayed.finished:
            found.append(f"the canvas is not finished after {shown.steps} steps")
        found += self._output_differences(shown, replayed.token_ids, replayed.answers, committed)
        return found

    def canvas_record(self, committed: Sequence[Ids]) -> CanvasRecord:
        """Make the record that the leaf of the canvas behind these commits to (clause 7.1)."""
        size, canvas = self._loaded.limits.canvas_size, len(committed)
        end = templates.end_before(self._request, committed, self._loaded.eos_ids)
        pins = templates.held(self._request, canvas, size, end)
        return CanvasRecord(
            canvas=canvas,
            size=size,
            vocab_size=self._loaded.limits.vocab_size,
            kind=self._claimed.kind,
            seed=self._claimed.parameters.seed,
            parameters=self._claimed.parameters.struct_hash(),
            content=self._claimed.job_content,
            pinned=pinned_root((i, token) for i, token in enumerate(pins) if token != HOLE),
            prompt_tokens=self._shown(canvas).prompt_tokens,
        )

    def _output_differences(
        self,
        shown: ClaimedCanvas,
        ids: Ids,
        answers: tuple[Ids, ...] | None,
        committed: tuple[Ids, ...],
    ) -> list[str]:
        """Compare what was delivered with a finished canvas: tokens, text or answers, the end.

        ids: of the canvas. answers: of a read, or None if nobody knows them.
        """
        found, charge = list[str](), self._charge()
        before = [charge.append(canvas)[0] for canvas in committed]
        charged, finish = charge.append(ids)
        if Finish(int(finish)) is not shown.finish:
            ends = "goes on" if finish is CanvasFinish.MORE else "ends"
            found.append(f"the answer {ends} with this canvas, and the receipt says otherwise")
        if shown.output is None:
            return found
        output = KINDS[self._claimed.kind].decode_output(shown.output)
        if isinstance(output, ReadOutput):
            if answers is not None and output.answers != answers:
                found.append("the delivered answers are others than the canvas gives")
        elif not isinstance(output, TextOutput) or output.token_ids != charged:
            found.append("the delivered tokens are others than those of the canvas")
        else:
            stream = self._text_after(before)
            if output.segments != stream.append(charged, final=finish is not CanvasFinish.MORE):
                found.append("the delivered text is another than that of its tokens")
        return found

    def _draft_differences(
        self, shown: ClaimedCanvas, replayed: ComputedCanvas, committed: tuple[Ids, ...]
    ) -> list[str]:
        """Compare what was delivered with a canvas that was cancelled: a draft of it, or nothing.

        Which steps gave a draft nobody signs. So the draft of any step will do.
        """
        rules = KINDS[self._claimed.kind]
        output = None if shown.output is None else rules.decode_output(shown.output)
        if output is None or output == rules.nothing:
            return []
        if not isinstance(output, TextOutput):
            return ["answers are delivered of a canvas that was cancelled"]
        charge = self._charge()
        stream = self._text_after([charge.append(canvas)[0] for canvas in committed])
        drafts = [charge.preview(read_ids(step.argmax)) for step in replayed.records]
        if output.token_ids not in drafts:
            return ["the delivered tokens are those of no step of the cancelled canvas"]
        if output.segments != stream.preview(output.token_ids):
            return ["the delivered text is another than that of its tokens"]
        return []

    def _charge(self) -> Charge:
        """Begin to count what is charged of the job's canvases."""
        loaded = self._loaded
        controls = loaded.tokenizer.control_ids
        return charge_of(self._request, loaded.limits.canvas_size, loaded.eos_ids, controls)

    def _text_after(self, charged: Sequence[Ids]) -> SegmentStream:
        """Make the text of a canvas behind those of which so much was charged."""
        stream = SegmentStream(self._loaded.tokenizer)
        stream.append(tuple(itertools.chain.from_iterable(charged)), final=False)
        return stream

    def _no_verdict(self, level: AuditLevel, canvas: int, reason: str) -> CanvasAudit:
        steps = int(self._shown(canvas).steps)
        return CanvasAudit(level, AuditOutcome.NO_VERDICT, canvas, steps, reason=reason)


_TESTS: Final = {
    "logits": "the logits are further from this model's than rounding explains",
    "soft": "the soft embeddings are further from this model's than rounding explains",
    "argmax": "a delivered token is not the most likely one",
    "sampling": "a token is not the one that the seed picks",
}


def _excuse(
    auditor: ForcedPass,
    request: GenerationRequest,
    control: Callable[[], Sequence[OpenedStep]],
    tails: Tails,
) -> str:
    """Say why a canvas that looks wrong blames nobody, or return ""."""
    try:
        honest = judge(scores(auditor.figures(request, control())), tails)
    except (ModelError, MemoryError, RuntimeError) as error:
        return f"it looks wrong, and no control can be made here: {error}"
    return "" if honest.passed else "an honest canvas of this prompt looks wrong here too"


def _misplaced(opened: Sequence[OpenedStep], canvas: int) -> list[str]:
    """List the steps that are committed as those of another canvas."""
    return [
        f"step {step.step} is committed as one of canvas {step.canvas}"
        for step in opened
        if step.canvas != canvas
    ]


def _words_of(failure: Failure) -> str:
    return (
        f"{_TESTS[failure.test]}: {failure.score:.4g}, and nearly all honest canvases stay below "
        f"{failure.threshold:.4g}"
    )


def _trace_difference(ours: Sequence[bytes], theirs: Sequence[bytes] | None) -> str:
    """Say where two traces part."""
    if theirs is None:
        return "the trace is another one"
    place = first_difference(ours, theirs)
    if place == 0:
        return "the canvas leaf binds other terms than the job's"
    return f"the trace differs from step {(place or 1) - 1} on"
