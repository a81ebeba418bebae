"""What the commands about evidence share: reading a file of either kind, and plain words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from piecework.base.files import read
from piecework.base.jsons import loads
from piecework_protocol.errors import EvidenceRefused
from piecework_protocol.evidence.check import ProvenJob, check_evidence
from piecework_protocol.evidence.file import FORMAT, EvidenceFile, evidence_of, read_evidence
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.limits import MAX_EVIDENCE_BYTES
from piecework_protocol.objects import Finish
from piecework_protocol.service import service_name
from piecework_protocol.types import to_hex
from piecework_protocol.views import members

if TYPE_CHECKING:
    from piecework.client.gateway.replies import CheckedReply

MAX_DOCUMENT_BYTES: Final = 2 * MAX_EVIDENCE_BYTES
"""A saved answer with several choices has several evidence files."""
_ENDS: Final = {
    Finish.MORE: "its end is not in this file",
    Finish.END_OF_TEXT: "it came to its end",
    Finish.TOKEN_LIMIT: "it ended at its token limit",
    Finish.CANCELLED: "it was cancelled",
}


@dataclass(frozen=True, slots=True)
class Checked:
    """A document that holds. `reply` is None for an evidence file."""

    jobs: tuple[tuple[EvidenceFile, ProvenJob], ...]
    reply: CheckedReply | None


def read_document(path: Path) -> tuple[bytes, Any]:
    """Read a saved answer or an evidence file: its bytes, and its JSON.

    Raises:
        FileError: The file cannot be read.
        EvidenceRefused: It is not JSON, or names a member twice.
    """
    found = read(path, MAX_DOCUMENT_BYTES)
    try:
        return found, loads(found, unique=True)
    except ValueError:
        raise EvidenceRefused("file", "it is not JSON that every reader reads alike") from None


async def check_document(document: Any, found: bytes | None = None) -> Checked:
    """Check a saved answer or an evidence file. `found` are its bytes, if it came as a file.

    Raises:
        EvidenceRefused: Something in it does not hold.
    """
    if isinstance(document, dict) and document.get("format") == FORMAT:
        file = evidence_of(document) if found is None else read_evidence(found)
        return Checked(((file, check_evidence(file)),), None)
    from piecework.client.gateway.replies import check_reply

    reply = await check_reply(document)
    return Checked(tuple((one.file, one.proven) for one in reply.jobs), reply)


def texts_of(checked: Checked) -> tuple[str, ...]:
    """Return what was answered: one text for each choice, or the text of the one job.

    A decision has none.
    """
    if checked.reply is None:
        outputs = checked.jobs[0][1].outputs or ()
        return ("".join(o.text for o in outputs if isinstance(o, TextOutput)),)
    whole = checked.reply.whole
    if "answers" in whole:
        return ()  # a decision has probabilities and no text
    if "output" in whole:
        parts = [part for item in whole["output"] for part in item.get("content") or ()]
        return ("".join(p["text"] for p in parts if p.get("type") == "output_text"),)
    found = (one.get("text", (one.get("message") or {}).get("content")) for one in whole["choices"])
    return tuple(text or "" for text in found)


def lines_of(checked: Checked) -> Iterator[str]:
    """Say what is proven, and by whom."""
    reply = checked.reply
    if reply is not None:
        jobs = "1 job" if len(checked.jobs) == 1 else f"{len(checked.jobs)} jobs"
        what = "Probabilities" if "answers" in reply.whole else "Text"
        yield f"answer     {reply.kind}, made of {jobs}. {what}, usage and cost follow from them"
        yield f"gateway    {to_hex(reply.gateway)} signed all of it. Times and ids are its word"
        if reply.stop:
            shown = ", ".join(json.dumps(text) for text in reply.stop)
            yield f"stop       the gateway ends the text before {shown}. More may be signed"
    for file, proven in checked.jobs:
        yield from _job_lines(file, proven)
    yield "not proven here: the worker's stake, the escrow's code (--rpc asks the chain), and that"
    yield "the worker ran this model. It is bound to the trace roots that it signed"


def _job_lines(file: EvidenceFile, proven: ProvenJob) -> Iterator[str]:
    job, channel, model = file.job.job, file.channel, proven.model
    signer = (
        "" if file.offer.signer == channel.operator else f", offer by {to_hex(file.offer.signer)}"
    )
    yield f"job        {to_hex(proven.job)}: {_ENDS[proven.finish]}"
    yield f"asked by   {to_hex(channel.authorizer)}, which signed it. Seed {job.parameters.seed}"
    yield f"run by     {to_hex(channel.operator)}, which signed each canvas{signer}"
    yield f"model      {model.name}, {to_hex(model.digest)}"
    yield f"profile    {model.profile}, {service_name(model.service)}"
    if proven.accepted_at is not None:
        yield f"accepted   {_time(proven.accepted_at)} by the worker's clock"
    used, token = proven.used, to_hex(channel.token)
    yield (
        f"charged    {used.prompt_tokens} prompt tokens, {used.output_tokens} output tokens, "
        f"{used.denoising_steps} steps: {proven.amount} base units of {token}"
    )
    count = len(file.canvases)
    yield f"paid       {proven.paid} of {count} canvases, by vouchers that are in the file"
    yield f"trace      leaves of {proven.traced} of {count} canvases, under the signed roots"
    asked = "as it was signed" if proven.content is not None else "left out"
    answered = "as it was signed" if proven.outputs is not None else "left out"
    yield f"text       prompt {asked}, answer {answered}"
    if proven.contradictions:
        twice = f"{proven.contradictions} times"
        yield f"CONTRADICTIONS  one key signed two different statements, {twice}"


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def view_of(checked: Checked) -> dict[str, Any]:
    """Give what is proven as JSON."""
    reply = checked.reply
    return {
        "holds": True,
        "kind": FORMAT if reply is None else reply.kind,
        "gateway": None if reply is None else to_hex(reply.gateway),
        "jobs": [_job_view(file, proven) for file, proven in checked.jobs],
        "texts": list(texts_of(checked)),
        "answers": None if reply is None else reply.whole.get("answers"),
    }


def _job_view(file: EvidenceFile, proven: ProvenJob) -> dict[str, Any]:
    shown: Sequence[str] = ("job", "amount", "accepted_at", "paid", "traced", "contradictions")
    return {
        **members(proven, *shown),
        **members(proven.used, "prompt_tokens", "output_tokens", "denoising_steps"),
        **members(file.channel, "payer", "authorizer", "operator", "receiver", "token"),
        "finish": proven.finish.name.lower(),
        "model": proven.model.name,
        "model_digest": to_hex(proven.model.digest),
        "canvases": len(file.canvases),
        "with_content": proven.content is not None,
        "with_outputs": proven.outputs is not None,
    }
