"""Messages between the parent and the engine process: one JSON object a line, parsed into plain
values.

There is no pickle. The child runs a large library stack over strangers' prompts, and must not be
able to hand the parent anything but data. Every line is bounded.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Final

from piecework.base.jsons import loads
from piecework_model.requests import (
    CanvasEvent,
    CanvasFinish,
    DraftEvent,
    EncodedContent,
    Event,
    FailedEvent,
    GenerationRequest,
    ProgressEvent,
    PromptImage,
    ReadSlot,
    StoppedEvent,
)
from piecework_node.engine.link import EngineFacts, EnginePaused, EngineResumed
from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds import KINDS, Content
from piecework_protocol.kinds.audit import AuditContent, AuditOutput
from piecework_protocol.kinds.text import OutputSegment, SegmentKind
from piecework_protocol.objects import Kind, Service
from piecework_protocol.openings import PackedRecords, StepOpening, pack_records
from piecework_protocol.trace import StepRecord
from piecework_protocol.types import Digest

MAX_LINE_BYTES: Final = 64 * 1024 * 1024
"""The patches of all images of a prompt, 32 MiB in base64, beside four times 256 K token ids."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start a request."""

    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Allow:
    """Raise a sequence's canvas limit."""

    request_id: str
    limit: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End a sequence, at once or with the canvas that has begun."""

    request_id: str
    finish_canvas: bool


@dataclass(frozen=True, slots=True)
class Encode:
    """Encode a job's content. `number` comes back with the answer.

    most: a prompt of more tokens is cut off behind one more. None: at the context.
    """

    number: int
    content: Content
    most: int | None = None


@dataclass(frozen=True, slots=True)
class PauseEngine:
    """Take no further step. With `free_memory` the device's memory is freed too."""

    free_memory: bool


@dataclass(frozen=True, slots=True)
class ResumeEngine:
    """Take the memory back and go on."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Compute a canvas again, for so many steps. Those that are wanted come back one by one."""

    number: int
    request: GenerationRequest
    steps: int
    wanted: tuple[int, ...]
    soft: bool = False


@dataclass(frozen=True, slots=True)
class Audit:
    """Compute a canvas of another worker's job again, and say whether it is what is claimed.

    Every step comes back, one by one.
    """

    number: int
    content: AuditContent


@dataclass(frozen=True, slots=True)
class Drop:
    """Give up a `Replay` or an `Audit`. Nobody waits for its answer any more."""

    number: int


Command = Start | Allow | Stop | Encode | Replay | Audit | Drop | PauseEngine | ResumeEngine


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded and measured."""

    facts: EngineFacts


@dataclass(frozen=True, slots=True)
class CannotStart:
    """The model cannot be loaded. `message` is for the operator."""

    message: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """The answer to `Encode`: the content for the engine, or why it was rejected."""

    number: int
    content: EncodedContent
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Of a `Replay` or an `Audit`: so many of the tokens before its canvas are prefilled."""

    number: int
    tokens: int


@dataclass(frozen=True, slots=True)
class ShownStep:
    """A part of the answer to `Replay` or `Audit`: a step that was wanted."""

    number: int
    opening: StepOpening


@dataclass(frozen=True, slots=True)
class Replayed:
    """The end of the answer to `Replay`: the step leaves, or why there are none."""

    number: int
    step_leaves: tuple[bytes, ...]
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Audited:
    """The end of the answer to `Audit`: the report, or why there is none."""

    number: int
    report: AuditOutput
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Beat:
    """The process is alive."""


Report = (
    Ready
    | CannotStart
    | Encoded
    | Prefilled
    | ShownStep
    | Replayed
    | Audited
    | Beat
    | EnginePaused
    | EngineResumed
    | Event
)


def encode_command(command: Command) -> bytes:
    """Encode a command as a line for the child."""
    if isinstance(command, Start):
        body: dict[str, Any] = {"op": "start", "request": _written(command.request)}
    elif isinstance(command, Allow):
        body = {"op": "allow", "request_id": command.request_id, "limit": command.limit}
    elif isinstance(command, Stop):
        body = {"op": "stop", **_members(command)}
    elif isinstance(command, Drop):
        body = {"op": "drop", **_members(command)}
    elif isinstance(command, Replay):
        asked = {name: getattr(command, name) for name in ("number", "steps", "wanted", "soft")}
        body = {"op": "replay", "request": _written(command.request), **asked}
    elif isinstance(command, PauseEngine):
        body = {"op": "pause", **_members(command)}
    elif isinstance(command, ResumeEngine):
        body = {"op": "resume"}
    else:
        content = b64encode(command.content.encode()).decode()
        body = {
            "op": "audit" if isinstance(command, Audit) else "encode",
            "number": command.number,
            "kind": command.content.kind,
            "content": content,
        }
        if isinstance(command, Encode) and command.most is not None:
            body["most"] = command.most
    return _line(body)


def decode_command(line: bytes) -> Command:
    """Parse what `encode_command` makes. Raises `MalformedInput` for anything else."""
    body = _body(line)
    try:
        match body["op"]:
            case "start":
                return Start(_request(body["request"]))
            case "allow":
                return Allow(body["request_id"], body["limit"])
            case "stop":
                return Stop(body["request_id"], body["finish_canvas"])
            case "pause":
                return PauseEngine(body["free_memory"])
            case "resume":
                return ResumeEngine()
            case "encode" | "replay" | "audit" | "drop":
                return _question(body)
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedInput(f"an engine command lacks or mistypes {error}") from None
    raise MalformedInput("an engine command of no known kind")


def _question(body: dict[str, Any]) -> Encode | Replay | Audit | Drop:
    if body["op"] == "drop":
        return Drop(body["number"])
    if body["op"] == "replay":
        request = _request(body["request"])
        wanted = tuple(body["wanted"])
        return Replay(body["number"], request, body["steps"], wanted, body["soft"])
    rules = KINDS[Kind(body["kind"])]
    content = rules.decode_content(b64decode(body["content"], validate=True))
    if body["op"] == "encode":
        return Encode(body["number"], content, body.get("most"))
    if not isinstance(content, AuditContent):
        raise ValueError("kind")
    return Audit(body["number"], content)


def _written(request: GenerationRequest) -> dict[str, Any]:
    return _members(request) | _images(request.images)


def _request(body: dict[str, Any]) -> GenerationRequest:
    committed = tuple(tuple(canvas) for canvas in body["committed"])
    return GenerationRequest(
        **{**body, "committed": committed, "prompt_ids": tuple(body["prompt_ids"])}
        | {"template": tuple(body["template"]), "reads": _reads(body)}
        | {"images": _read_images(body)}
    )


def _encoded(body: dict[str, Any]) -> Encoded:
    content = body["content"]
    ids, template = tuple(content["prompt_ids"]), tuple(content["template"])
    encoded = EncodedContent(
        ids, template, _reads(content), content["positions"], _read_images(content)
    )
    return Encoded(body["number"], encoded, body["refused"])


def _reads(body: dict[str, Any]) -> tuple[tuple[ReadSlot, ...], ...]:
    return tuple(
        tuple(ReadSlot(slot["position"], tuple(slot["label_ids"])) for slot in canvas)
        for canvas in body["reads"]
    )


def _images(images: tuple[PromptImage, ...]) -> dict[str, Any]:
    """Write the images of a request or a content, with their patches in base64."""
    shown = [_members(image) | {"patches": b64encode(image.patches).decode()} for image in images]
    return {"images": shown}


def _read_images(body: dict[str, Any]) -> tuple[PromptImage, ...]:
    return tuple(
        PromptImage(**{**image, "patches": b64decode(image["patches"], validate=True)})
        for image in body["images"]
    )


def encode_report(report: Report) -> bytes:
    """Encode a report as a line for the parent."""
    if isinstance(report, Ready):
        body: dict[str, Any] = {
            "op": "ready",
            **_members(report.facts),
            "digest": report.facts.digest.hex(),
            "end_ids": sorted(report.facts.end_ids),
        }
    elif isinstance(report, CannotStart):
        body = {"op": "cannot_start", "message": report.message}
    elif isinstance(report, Encoded):
        content = _members(report.content) | _images(report.content.images)
        body = {
            "op": "encoded",
            "number": report.number,
            "content": content,
            "refused": report.refused,
        }
    elif isinstance(report, Replayed | Audited | Prefilled | ShownStep):
        body = _computed_again(report)
    elif isinstance(report, Beat):
        body = {"op": "beat"}
    elif isinstance(report, EnginePaused):
        body = {"op": "paused", **_members(report)}
    elif isinstance(report, EngineResumed):
        body = {"op": "resumed"}
    elif isinstance(report, DraftEvent):
        body = {"op": "draft", **_members(report)}
    elif isinstance(report, ProgressEvent):
        body = {"op": "progress", **_members(report)}
    elif isinstance(report, CanvasEvent | StoppedEvent):
        leaves = [leaf.hex() for leaf in report.step_leaves]
        op = "canvas" if isinstance(report, CanvasEvent) else "stopped"
        kept = b64encode(pack_records(report.records)).decode()
        body = {"op": op, **_members(report), "step_leaves": leaves, "records": kept}
        for of_other_jobs in ("opened", "report"):  # no engine makes these by itself
            body.pop(of_other_jobs, None)
    else:
        body = {"op": "failed", **_members(report)}
    return _line(body)


def _computed_again(report: Replayed | Audited | Prefilled | ShownStep) -> dict[str, Any]:
    """Write a part of the answer to a replay or an audit."""
    if isinstance(report, Prefilled):
        body: dict[str, Any] = {"op": "prefilled", "tokens": report.tokens}
    elif isinstance(report, Replayed):
        leaves = [leaf.hex() for leaf in report.step_leaves]
        body = {"op": "replayed", "step_leaves": leaves, "refused": report.refused}
    elif isinstance(report, Audited):
        found = b64encode(report.report.encode()).decode()
        body = {"op": "audited", "report": found, "refused": report.refused}
    else:
        shown = report.opening
        soft = None if shown.soft is None else b64encode(shown.soft).decode()
        fields = [b64encode(field).decode() for field in shown.fields]
        body = {"op": "step", "fields": fields, "soft": soft}
    return {**body, "number": report.number}


def decode_report(line: bytes) -> Report:
    """Parse what `encode_report` makes. Raises `MalformedInput` for anything else."""
    body = _body(line)
    try:
        return _report(body.pop("op"), body)
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedInput(f"an engine report lacks or mistypes {error}") from None


def _report(kind: str, body: dict[str, Any]) -> Report:
    parse = _REPORTS.get(kind)
    if parse is None:
        raise MalformedInput("an engine report of no known kind")
    return parse(body)


def _canvas(body: dict[str, Any]) -> CanvasEvent:
    return CanvasEvent(
        **{
            **body,
            "token_ids": tuple(body["token_ids"]),
            "charged_ids": tuple(body["charged_ids"]),
            "segments": _segments(body),
            "answers": tuple(tuple(answer) for answer in body["answers"]),
            "step_leaves": _leaves(body),
            "records": _records(body),
            "finish": CanvasFinish(body["finish"]),
        }
    )


def _draft(body: dict[str, Any]) -> DraftEvent:
    ids = tuple(body["token_ids"])
    return DraftEvent(**{**body, "token_ids": ids, "segments": _segments(body)})


def _segments(body: dict[str, Any]) -> tuple[OutputSegment, ...]:
    return tuple(OutputSegment(SegmentKind(s["kind"]), s["text"]) for s in body["segments"])


def _leaves(body: dict[str, Any]) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(leaf) for leaf in body["step_leaves"])


def _records(body: dict[str, Any]) -> PackedRecords:
    return PackedRecords(b64decode(body["records"], validate=True))


def _replayed_step(body: dict[str, Any]) -> ShownStep:
    fields = tuple(b64decode(member, validate=True) for member in body["fields"])
    StepRecord.parse(fields)
    soft = None if body["soft"] is None else b64decode(body["soft"], validate=True)
    return ShownStep(body["number"], StepOpening(fields, soft))


_REPORTS: Final[dict[str, Callable[[dict[str, Any]], Report]]] = {
    "ready": lambda b: Ready(
        EngineFacts(
            **{**b, "digest": Digest(bytes.fromhex(b["digest"])), "service": Service(b["service"])}
            | {"kinds": tuple(map(Kind, b["kinds"])), "end_ids": frozenset(b["end_ids"])}
        )
    ),
    "cannot_start": lambda b: CannotStart(str(b["message"])),
    "encoded": _encoded,
    "prefilled": lambda b: Prefilled(**b),
    "step": _replayed_step,
    "replayed": lambda b: Replayed(b["number"], _leaves(b), b["refused"]),
    "audited": lambda b: Audited(
        b["number"], AuditOutput.decode(b64decode(b["report"], validate=True)), b["refused"]
    ),
    "beat": lambda _: Beat(),
    "paused": lambda b: EnginePaused(**b),
    "resumed": lambda _: EngineResumed(),
    "draft": _draft,
    "progress": lambda b: ProgressEvent(**b),
    "stopped": lambda b: StoppedEvent(**{**b, "step_leaves": _leaves(b), "records": _records(b)}),
    "canvas": _canvas,
    "failed": lambda b: FailedEvent(**b),
}


def _line(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), default=_members).encode() + b"\n"


def _members(value: Any) -> dict[str, Any]:
    """Give the members of an object by name. JSON's encoder asks again for objects inside them.

    `dataclasses.asdict` copies every id of a prompt one by one, in Python.
    """
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _body(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise MalformedInput("an engine line is too long")
    try:
        body = loads(line)
    except ValueError:
        raise MalformedInput("an engine line is not JSON") from None
    if not isinstance(body, dict):
        raise MalformedInput("an engine line is a JSON object")
    return body
