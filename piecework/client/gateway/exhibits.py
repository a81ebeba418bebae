"""What makes an answer prove itself: the evidence of its jobs, and the gateway's own signature.

The workers' signatures cover what was asked, answered and charged. The gateway signs the answer as
a whole with the key that signed the jobs, because it alone says the rest: times, ids, and how it
put the answer together.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from piecework.client.evidence import output_of
from piecework.client.gateway.formats.common import ApiError, Head, Totals
from piecework.client.gateway.formats.pieces import Frame, Piece, Reply
from piecework.client.jobs.events import (
    CanvasText,
    JobEvent,
    JobFinished,
    JobStarted,
    ReadAnswers,
)
from piecework.client.jobs.requests import JobRequest
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.evidence.file import EvidenceFile, canonical, evidence_json
from piecework_protocol.evidence.members import hexed
from piecework_protocol.signing import Signer, sign
from piecework_protocol.types import Digest, JobId, keccak256

Source = Callable[[JobId, bytes, Mapping[int, bytes]], Awaitable[EvidenceFile]]
"""Makes the evidence of a job that has ended, from its content and its outputs by canvas."""


@dataclass(frozen=True, slots=True)
class ReplyStatement(TypedData):
    """The gateway's statement of an answer: keccak-256 of its canonical JSON.

    Members that are null, and the signature itself, are left out of it. 8.0 is written as 8.
    """

    body: Digest


class Exhibits:
    """The evidence of the jobs of one answer."""

    def __init__(self, source: Source, request: Any) -> None:
        """`request` is the JSON body that the caller sent."""
        self._source, self._request = source, request
        self._jobs: dict[int, EvidenceFile] = {}

    async def watched(
        self, events: AsyncIterator[JobEvent], request: JobRequest, part: int
    ) -> AsyncIterator[JobEvent]:
        """Pass the events of a job on, and keep its evidence when it ends.

        part: the number of its place in the request.
        """
        outputs: dict[int, bytes] = {}
        async for event in events:
            if isinstance(event, JobStarted):
                outputs.clear()  # the next worker took it
            elif isinstance(event, CanvasText | ReadAnswers):
                outputs[event.canvas] = output_of(event)
            elif isinstance(event, JobFinished):
                self._jobs[part] = await self._source(event.job, request.prompt, outputs)
            yield event

    def beside(self, ours: Mapping[str, Any]) -> dict[str, Any]:
        """Return a `piecework` object with the evidence in it. Whoever sends it signs it first."""
        return {**ours, "evidence": self.object()}

    def object(self) -> dict[str, Any]:
        """The `evidence` object of an answer, before it is signed."""
        jobs = [
            {"part": part, "evidence": evidence_json(file)}
            for part, file in sorted(self._jobs.items())
        ]
        return {"request": self._request, "jobs": jobs}


class SelfProving:
    """Renders an answer with what proves it. Implements `Reply` around another one."""

    def __init__(self, reply: Reply, exhibits: Exhibits, domain: Domain, signer: Signer) -> None:
        self._reply, self._exhibits = reply, exhibits
        self._domain, self._signer = domain, signer

    def opening(self, head: Head) -> Iterable[Frame]:
        """Render what a stream begins with."""
        return self._reply.opening(head)

    def take(self, piece: Piece) -> Iterable[Frame]:
        """Take a piece in, and render what it adds to a stream."""
        return self._reply.take(piece)

    def failing(self, error: ApiError) -> Iterable[Frame]:
        """Render a failure after a stream began."""
        return self._reply.failing(error)

    def closing(self, totals: Totals, ours: Mapping[str, Any]) -> Iterator[Frame]:
        """Render what a stream ends with. The object with `piecework` is signed."""
        for frame in self._reply.closing(totals, self._exhibits.beside(ours)):
            yield replace(frame, data=signed(frame.data, self._domain, self._signer))

    def whole(self, head: Head, totals: Totals, ours: Mapping[str, Any]) -> dict[str, Any]:
        """Render the answer of a request that does not stream, signed."""
        found = self._reply.whole(head, totals, self._exhibits.beside(ours))
        return signed(found, self._domain, self._signer)


def carrier(data: Any) -> dict[str, Any] | None:
    """Return the object of an answer, a chunk or an event that has the evidence, if any has."""
    for found in (data, data.get("response") if isinstance(data, dict) else None):
        ours: Any = found.get("piecework") if isinstance(found, dict) else None
        if isinstance(found, dict) and isinstance(ours, dict) and "evidence" in ours:
            return dict(found)
    return None


def statement(found: Mapping[str, Any]) -> ReplyStatement:
    """Give what the gateway signs of an answer that has the evidence."""
    ours = dict(found["piecework"])
    ours["evidence"] = {k: v for k, v in ours["evidence"].items() if k != "signature"}
    plain = canonical(_plain({**found, "piecework": ours}))
    return ReplyStatement(Digest(keccak256(plain)))


def signed(data: Mapping[str, Any], domain: Domain, signer: Signer) -> dict[str, Any]:
    """Return an answer, a chunk or an event with the gateway's signature in its evidence."""
    found = carrier(data)
    if found is None:
        return dict(data)
    signature = hexed(sign(domain, statement(found), signer))
    evidence = {**found["piecework"]["evidence"], "signature": signature}
    found["piecework"] = {**found["piecework"], "evidence": evidence}
    return found if "piecework" in data else {**data, "response": found}


def _plain(value: Any) -> Any:
    """Drop members that are null, and write 8.0 as 8. SDKs change these in what they save."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
