"""Judging a saved answer of a gateway, without a wallet, a database or a network.

The answer is made again: the request that stands in it is parsed, and its jobs give the outputs of
their evidence. What comes out must be the answer. So nothing in it can differ from what workers
signed, however the gateway put it together. What the gateway alone says is held by its signature.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar

from piecework.base.amounts import Token
from piecework.base.errors import PieceworkError
from piecework.base.jsons import loads
from piecework.client.errors import RequestRefused, WorkerUnreachable
from piecework.client.gateway.answers import Answers, read
from piecework.client.gateway.bill import Bill
from piecework.client.gateway.exhibits import carrier, statement
from piecework.client.gateway.formats import chat, completions, decisions, responses
from piecework.client.gateway.formats.asks import Ask
from piecework.client.gateway.formats.common import FormatOptions, Head
from piecework.client.gateway.formats.decisions import ReadAsk
from piecework.client.gateway.formats.pieces import Frame, Reply
from piecework.client.gateway.metrics import GatewayMetrics
from piecework.client.gateway.turns import RunningJob
from piecework.client.jobs.delivered import finish_reason
from piecework.client.jobs.events import (
    CanvasText,
    FinishReason,
    JobEvent,
    JobFinished,
    JobStarted,
    ReadAnswers,
)
from piecework.client.jobs.requests import JobRequest, TextRequest, job_parameters
from piecework.client.jobs.run import Caller, JobRun
from piecework.client.jobs.selection import MAX_TOKENS_TOO_LARGE
from piecework.client.journal.records import Part
from piecework.client.network.discovery import serves
from piecework_protocol.errors import EvidenceRefused
from piecework_protocol.evidence.check import ProvenJob, check_evidence, digests_of
from piecework_protocol.evidence.file import EvidenceFile, evidence_of
from piecework_protocol.evidence.members import data, entries, number, of_names
from piecework_protocol.kinds import Content, Output
from piecework_protocol.kinds.read import ReadContent, ReadOutput
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.objects import Finish, Receipt, Service
from piecework_protocol.signing import signed_by
from piecework_protocol.types import (
    SIGNATURE_BYTES,
    Address,
    Amount,
    Digest,
    parse_address,
    to_hex,
)
from piecework_protocol.views import members

Parsed = TypeVar("Parsed")
MAX_JOBS_OF_A_REPLY: Final = 512
EVIDENCE: Final = "piecework.evidence"
NO_PLACE: Final = -1
"""In the accumulator, of a receipt without a proof. No answer has it."""
_EVENT: Final = frozenset({"type", "sequence_number", "response"})
_GIVEN: Final = frozenset({"id", "call_id", "item_id", "created", "created_at", "cost_usd"})
"""Members that the gateway alone says: names, times, and what a token is worth to it."""
_TOTALS: Final = frozenset({"cost", "denoising_steps", "acknowledged"})
_FORMATS: Final[Mapping[str, tuple[Any, Any]]] = {
    "chat.completion": (chat.parse_chat, chat.ChatReply),
    "chat.completion.chunk": (chat.parse_chat, chat.ChatReply),
    "text_completion": (completions.parse_completion, completions.CompletionReply),
    "response": (responses.parse_response, responses.ResponseReply),
}
DECISIONS, SYSTEMONE = "decisions", "systemone"
"""Answers without a member `object`: their `answers` are a list, or an object."""
_READS: Final[Mapping[str, tuple[Any, Any]]] = {
    DECISIONS: (decisions.parse_decision, decisions.decision),
    SYSTEMONE: (decisions.parse_systemone, decisions.systemone),
}


@dataclass(frozen=True, slots=True)
class CheckedJob:
    """One job of an answer: its evidence, and what that proves."""

    file: EvidenceFile
    proven: ProvenJob


@dataclass(frozen=True, slots=True)
class CheckedReply:
    """An answer that holds.

    Attributes:
        kind: Its `object`, such as "chat.completion", or the format of a decision.
        jobs: Those that it was made of, in the order of their parts.
        whole: The answer, made again. Of a stream it is what the chunks say together.
        gateway: Whose signature the answer has.
        stop: Texts at which the answer ends, as the gateway says that the request had them. What
            the workers signed may go on behind.
    """

    kind: str
    jobs: tuple[CheckedJob, ...]
    whole: Mapping[str, Any]
    gateway: Address
    stop: tuple[str, ...] = ()


async def check_reply(raw: Any) -> CheckedReply:
    """Check a saved answer: a whole one, the last chunk of a stream, or a response's last event.

    Raises:
        EvidenceRefused: It has no evidence, or something in it does not hold.
    """
    found = carrier(raw)
    if found is None:
        raise EvidenceRefused(EVIDENCE, "the answer has none. Ask with piecework.evidence: true")
    kind = _kind_of(found)
    shown = of_names(found["piecework"]["evidence"], EVIDENCE, "request", "jobs", "signature")
    jobs = _jobs(shown["jobs"])
    gateway = _signer(found, shown["signature"], list(jobs.values()))
    _check_event(raw, found)
    if kind in _READS:
        whole = await _decided_again(found, kind, shown["request"], jobs)
        return CheckedReply(kind, tuple(jobs.values()), whole, gateway)
    ask: Ask = _asked_for(_FORMATS[kind][0], shown["request"])
    whole = await _again(found, ask, jobs)
    return CheckedReply(kind, tuple(jobs.values()), whole, gateway, ask.stop)


def _kind_of(found: Mapping[str, Any]) -> str:
    """Name the format of an answer."""
    kind, answers = found.get("object"), found.get("answers")
    if kind is None and isinstance(answers, list | dict):
        return DECISIONS if isinstance(answers, list) else SYSTEMONE
    if not isinstance(kind, str) or kind not in _FORMATS:
        raise EvidenceRefused("object", f"it is not among {', '.join(_FORMATS)}")
    return kind


def _check_event(raw: Any, found: Mapping[str, Any]) -> None:
    """Refuse an event that says more than the response in it. The signature covers that alone."""
    if "piecework" in raw:
        return
    for name, value in raw.items():
        if name not in _EVENT and value is not None:
            raise EvidenceRefused(name, "no last event of a response has it")
    if raw.get("type") != f"response.{found.get('status')}":
        raise EvidenceRefused("type", "it is not the event of such a response")
    if type(raw.get("sequence_number", 0)) is not int:
        raise EvidenceRefused("sequence_number", "it is not a whole number")


@contextmanager
def _blaming_the_request() -> Iterator[None]:
    """Refuse the request in the evidence if something goes wrong with it."""
    try:
        yield
    except EvidenceRefused:
        raise
    except PieceworkError as error:
        raise EvidenceRefused(f"{EVIDENCE}.request", f"it gives no such answer: {error}") from None


def _asked_for(parse: Callable[[Any, FormatOptions], Parsed], request: Any) -> Parsed:
    """Parse the request in the evidence."""
    with _blaming_the_request():
        # What a gateway prefers when a request does not say changes nothing that is compared.
        return parse(request, FormatOptions())


def _jobs(raw: Any) -> dict[int, CheckedJob]:
    """Check the evidence of each job, by the number of its part."""
    jobs: dict[int, CheckedJob] = {}
    for i, one in enumerate(entries(raw, f"{EVIDENCE}.jobs", MAX_JOBS_OF_A_REPLY)):
        where = f"{EVIDENCE}.jobs[{i}]"
        given = of_names(one, where, "part", "evidence")
        part = number(given["part"], f"{where}.part")
        try:
            file = evidence_of(given["evidence"])
            proven = check_evidence(file)
        except EvidenceRefused as refused:
            raise EvidenceRefused(f"{where}.{refused.member}", refused.message) from None
        if file.content is None or proven.outputs is None:
            raise EvidenceRefused(where, "the text is left out, so the answer cannot be checked")
        if jobs and part <= max(jobs):
            raise EvidenceRefused(f"{where}.part", "the parts are not in order")
        jobs[part] = CheckedJob(file, proven)
    if not jobs:
        raise EvidenceRefused(f"{EVIDENCE}.jobs", "there is none, so nobody has signed anything")
    return jobs


def _signer(found: Mapping[str, Any], raw: Any, jobs: Sequence[CheckedJob]) -> Address:
    """Check the gateway's signature. It is that of the key which signed the jobs."""
    where = f"{EVIDENCE}.signature"
    signature = data(raw, where, SIGNATURE_BYTES, least=SIGNATURE_BYTES)
    first = jobs[0].file
    gateway, domain = first.channel.authorizer, first.domain
    if any(one.file.channel.authorizer != gateway or one.file.domain != domain for one in jobs):
        raise EvidenceRefused(f"{EVIDENCE}.jobs", "they are not all of one client and market")
    try:
        said = statement(found)
    except (ValueError, RecursionError):
        raise EvidenceRefused("file", "it is not JSON that can be signed") from None
    if not signed_by(domain, said, signature, gateway):
        raise EvidenceRefused(where, "something in the answer was changed after it was signed")
    return gateway


# --- making the answer again


async def _again(
    found: dict[str, Any], ask: Ask, jobs: Mapping[int, CheckedJob]
) -> Mapping[str, Any]:
    """Make the answer again out of its evidence, and compare. Return it."""
    render = _FORMATS[found["object"]][1]
    first = next(iter(jobs.values())).file
    frames: list[Frame] = []
    with _blaming_the_request():
        bill = Bill(_token(found["piecework"], first), None, ask.ignored)
        reply: Reply = render(ask)
        head = Head(_text(found, "id"), _created(found), _model(found, jobs))
        for _ in reply.opening(head):
            pass
        recorded = _Recorded(jobs)
        async with Answers(ask, recorded, GatewayMetrics(), bill).running() as pieces:
            async for piece in pieces:
                frames += reply.take(piece)
        frames += reply.closing(bill.totals(), bill.ours())
        whole = reply.whole(head, bill.totals(), bill.ours())
    recorded.require_all_used()
    whole = loads(json.dumps(whole))
    _compare_ours(whole["piecework"], found["piecework"], jobs)
    ours = {"piecework"}
    ends = [whole]
    if ask.stream and found["object"] != "response":
        ends = _last_chunks(frames) or [whole]
    # Side by side, answers end in any order, so any choice's end may be the last chunk.
    choice = _choice_of(found)
    end = next((one for one in ends if _choice_of(one) == choice), ends[-1])
    _compare(_without(end, ours), _without(found, ours), "")
    return {**whole, "piecework": found["piecework"]}


async def _decided_again(
    found: dict[str, Any], kind: str, request: Any, jobs: Mapping[int, CheckedJob]
) -> Mapping[str, Any]:
    """Make a decision again out of its evidence, and compare. Return it."""
    parse, render = _READS[kind]
    ask: ReadAsk = _asked_for(parse, request)
    first = next(iter(jobs.values())).file
    bill = Bill(_token(found["piecework"], first), None, ask.ignored)
    recorded, model = _Recorded(jobs), _model(found, jobs)
    with _blaming_the_request():
        answers = await read(ask, recorded, GatewayMetrics(), bill)
    recorded.require_all_used()
    whole = loads(json.dumps(render(model, ask.asked, answers, bill.totals(), bill.ours())))
    _compare_ours(whole["piecework"], found["piecework"], jobs)
    # The caller named questions and choices. So no name in the answers is the gateway's to give.
    _compare(whole["answers"], found["answers"], "answers", given=frozenset())
    ours = {"piecework", "answers"}
    _compare(_without(whole, ours), _without(found, ours), "")
    return {**whole, "piecework": found["piecework"]}


def _last_chunks(frames: Sequence[Frame]) -> list[dict[str, Any]]:
    """Give the chunks in which choices end. All the text came before them."""
    found = []
    for frame in frames:
        chunk = loads(json.dumps(dict(frame.data)))
        if any(one.get("finish_reason") is not None for one in chunk.get("choices", ())):
            found.append(chunk)
    return found


def _choice_of(chunk: Mapping[str, Any]) -> Any:
    """Give the index of a chunk's first choice, or None."""
    choices = chunk.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first.get("index") if isinstance(first, dict) else None


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str):
        raise EvidenceRefused(name, "it is not a text")
    return value


def _created(found: Mapping[str, Any]) -> int:
    value = found.get("created", found.get("created_at"))
    if not isinstance(value, int | float) or not value >= 0:
        raise EvidenceRefused("created", "it is not a time")
    return int(value)


def _model(found: Mapping[str, Any], jobs: Mapping[int, CheckedJob]) -> str:
    model = _text(found, "model")
    if model not in {one.proven.model.name for one in jobs.values()}:
        raise EvidenceRefused("model", "no job of the answer ran on it")
    return model


def _token(ours: Mapping[str, Any], file: EvidenceFile) -> Token:
    """What the gateway says of the token. Its address is the channel's."""
    where = "piecework.token"
    given = of_names(ours.get("token"), where, "address", "symbol", "decimals")
    try:
        token = Token(
            bytes(parse_address(given["address"])), given["symbol"], int(given["decimals"])
        )
    except (ValueError, TypeError, AttributeError):
        raise EvidenceRefused(where, "it is not a token") from None
    if token.address != file.channel.token:
        raise EvidenceRefused(f"{where}.address", "it is not the channel's token")
    return token


def _compare_ours(
    expected: Mapping[str, Any], given: Mapping[str, Any], jobs: Mapping[int, CheckedJob]
) -> None:
    """Compare the `piecework` objects. Side by side, answers end in any order."""
    shown = (given, *_list(given, "more_jobs"))
    listed = {to_hex(one.proven.job): _entry(one) for one in jobs.values()}
    names = set(next(iter(listed.values())))
    for i, one in enumerate(shown):
        where = "piecework" if not i else f"piecework.more_jobs[{i - 1}]"
        known = listed.pop(str(one.get("job")), None)
        if known is None:
            raise EvidenceRefused(f"{where}.job", "there is no evidence of it")
        totals = _TOTALS if not i else {"acknowledged"}
        _compare(_without(known, totals), {n: one.get(n) for n in names - totals}, where)
    if listed:
        raise EvidenceRefused("piecework.more_jobs", "a job of the evidence is missing")
    mine = {"job", "evidence", "receipts", "more_jobs", "acknowledged", *names} - {"cost"}
    mine -= {"denoising_steps"}
    _compare(_without(expected, mine), _without(given, mine), "piecework")
    ordered = [
        sorted(_list(ours, "receipts"), key=lambda one: str(one.get("receipt")))
        for ours in (expected, given)
    ]
    _compare(ordered[0], ordered[1], "piecework.receipts")


def _entry(job: CheckedJob) -> dict[str, Any]:
    """What an answer says of a job."""
    started, finished = _started(job), _finished(job)
    shown = members(started, "model_digest", "service", "ceiling")
    done = members(finished, "job", "channel", "cost", "denoising_steps")
    return {**shown, **done, "worker": to_hex(finished.operator)}


def _without(value: Mapping[str, Any], names: set[str] | frozenset[str]) -> dict[str, Any]:
    return {name: one for name, one in value.items() if name not in names}


def _list(value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = value.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise EvidenceRefused(f"piecework.{name}", "it is not a list of objects")
    return found


def _compare(expected: Any, found: Any, where: str, given: frozenset[str] = _GIVEN) -> None:
    """Refuse the first member that differs. Members that are null count as absent.

    given: names of members that are not compared.
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in sorted({*expected, *found} - given):
            at = f"{where}.{name}" if where else name
            _compare(expected.get(name), found.get(name), at, given)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for i, (one, other) in enumerate(zip(expected, found, strict=True)):
            _compare(one, other, f"{where}[{i}]", given)
    elif expected != found or isinstance(expected, bool) != isinstance(found, bool):
        raise EvidenceRefused(where, "it is not what the evidence gives")


# --- the jobs


class _Recorded:
    """The jobs of an answer, out of its evidence. Implements `JobSource`.

    unused: the parts that no request of the answer asked for yet.
    """

    def __init__(self, jobs: Mapping[int, CheckedJob]) -> None:
        self._jobs, self.unused = jobs, set(jobs)

    def require_all_used(self) -> None:
        """Refuse evidence of a job that the answer is not made of."""
        if self.unused:
            where = f"{EVIDENCE}.jobs"
            raise EvidenceRefused(where, f"part {min(self.unused)} is not of this answer")

    def part(self, number: int = 0) -> Part:
        """Return the part of this number."""
        return Part(number=number)

    @asynccontextmanager
    async def parts(self, requests: Sequence[TextRequest]) -> AsyncIterator[tuple[Part, ...]]:
        """Return a part for each request."""
        yield tuple(self.part(n) for n in range(len(requests)))

    @asynccontextmanager
    async def job(self, request: JobRequest, part: Part) -> AsyncIterator[RunningJob]:
        """Give the events of a job again.

        Raises:
            EvidenceRefused: The request asks for something else than the job did.
            RequestRefused: There is no evidence of a job over a template. No model took so long a
                one, or there would be no answer.
            WorkerUnreachable: There is no evidence of it, as of a read that failed.
        """
        found = self._jobs.get(part.number)
        if found is None:
            if isinstance(request, TextRequest) and request.template:
                why = f"there is no evidence of part {part.number}"
                raise RequestRefused(why, (), code=MAX_TOKENS_TOO_LARGE, param="max_tokens")
            raise WorkerUnreachable(f"there is no evidence of part {part.number}")
        self.unused.discard(part.number)
        fault = _request_fault(request, found)
        if fault is not None:
            raise EvidenceRefused(f"{EVIDENCE}.request", fault)
        _, *events = events_of(found)

        async def drive(caller: Caller) -> None:
            for event in events:
                await caller.emit(event)

        async with JobRun(drive, lambda _: None) as run:
            yield RunningJob(_started(found), aiter(run), run)
            # A gateway gives no answer of a job that stopped early, unless it left the job itself.
            if _finished(found).finish is FinishReason.CANCELLED and not run.cancelled.is_set():
                where = f"{EVIDENCE}.jobs"
                raise EvidenceRefused(where, f"the end of part {part.number} is not in the file")


def _request_fault(request: JobRequest, found: CheckedJob) -> str | None:
    """Say how a job differs from what a request asks for, as far as the request says it."""
    job, model = found.file.job.job, found.proven.model
    if request.prompt != found.file.content or request.kind is not job.kind:
        return "the jobs were asked for something else"
    if not serves(model, request.model):
        return "the jobs ran on another model"
    wanted = request.generation
    given = {one.name for one in fields(wanted) if getattr(wanted, one.name) is not None}
    if isinstance(request, TextRequest) and request.template:
        given.discard("max_tokens")  # the form has its own limit
    asked = job_parameters(model, wanted, wanted.seed or 0)
    if model.service is Service.BEST_EFFORT and wanted.replayable_only:
        return "a best-effort model ran what only a replayable one honours"
    for name in sorted(given):
        if getattr(asked, name) != getattr(job.parameters, name):
            return f"the jobs were signed with another {name}"
    return None


def events_of(job: CheckedJob) -> list[JobEvent]:
    """Give what a job told the gateway: its start, its canvases, its end."""
    file = job.file
    places = {one.canvas: one.proof.index for pay in file.payments for one in pay.paid}
    outputs = zip(file.canvases, job.proven.outputs or (), digests_of(file), strict=True)
    canvases = [
        _canvas_event(
            canvas.receipt, output, digest, places.get(canvas.receipt.canvas, NO_PLACE), job
        )
        for canvas, output, digest in outputs
    ]
    return [_started(job), *canvases, _finished(job)]


def _started(job: CheckedJob) -> JobStarted:
    signed, proven = job.file.job.job, job.proven
    return JobStarted(
        job=proven.job,
        channel=signed.channel,
        operator=job.file.channel.operator,
        model=proven.model.name,
        model_digest=proven.model.digest,
        prompt_tokens=proven.used.prompt_tokens,
        ceiling=signed.max_amount,
        service=proven.model.service,
    )


def _finished(job: CheckedJob) -> JobFinished:
    proven = job.proven
    return JobFinished(
        finish=finish_reason(proven.finish),
        job=proven.job,
        channel=job.file.job.job.channel,
        operator=job.file.channel.operator,
        prompt_tokens=proven.used.prompt_tokens,
        output_tokens=proven.used.output_tokens,
        denoising_steps=proven.used.denoising_steps,
        canvases=len(job.file.canvases),
        cost=proven.amount,
        acknowledged=True,
    )


def _canvas_event(
    receipt: Receipt, output: Output, digest: Digest, place: int, job: CheckedJob
) -> CanvasText | ReadAnswers:
    shared: dict[str, Any] = {
        "canvas": receipt.canvas,
        "steps": receipt.steps,
        "amount": receipt.amount,
        "cost": Amount(receipt.total_amount),
        "receipt": digest,
        "leaf_index": place,
        "last": receipt.finish is not Finish.MORE,
        "again": False,
    }
    if isinstance(output, TextOutput):
        return CanvasText(
            segments=output.segments,
            tokens=receipt.units,
            token_ids=output.token_ids,
            **shared,
        )
    asked = _asked(job.proven.content, receipt.canvas, job.proven.model.canvas_size)
    answers = output.answers if isinstance(output, ReadOutput) else ()
    return ReadAnswers(questions=tuple(asked)[: len(answers)], answers=answers, **shared)


def _asked(content: Content | None, canvas: int, size: int) -> range:
    return content.on_canvas(canvas, size) if isinstance(content, ReadContent) else range(0)
