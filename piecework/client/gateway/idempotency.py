"""Requests with an `Idempotency-Key`: sent again, they cost nothing again.

What is kept is a hash of the key, a hash of the body and the ids of the jobs, for a day. The answer
itself lies at the worker. It is fetched there again, canvas by canvas, and what was paid is not
paid twice. While the first request runs, a second one waits for it. When its caller hangs up, it
runs on to its end, so that sending it again finds a whole answer.

A request that failed before anything was paid is forgotten, and sending it again starts it again.
So does a part of it whose worker is away or has no record of the job, while nothing was paid for
that part.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from piecework.base.clock import Clock
from piecework.base.errors import PieceworkError
from piecework.client.errors import JobFollowed, RequestDiffers, RequestFollowed, TooManyRequests
from piecework.client.evidence import Texts, make_evidence
from piecework.client.gateway.exhibits import Exhibits
from piecework.client.gateway.formats.common import ApiError
from piecework.client.jobs.requests import JobRequest, TextRequest
from piecework.client.jobs.run import JobRun
from piecework.client.journal.records import Part, RequestKey
from piecework.client.journal.requests import KnownRequest, Requests
from piecework.client.sdk import PieceworkClient
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.evidence.file import EvidenceFile
from piecework_protocol.types import JobId, Timestamp

HEADER: Final = "Idempotency-Key"
MAX_KEY_CHARACTERS: Final = 255
ASK_AGAIN_S: Final = 5.0
GONE: Final = frozenset(
    {
        Reason.JOB_ENDED,
        Reason.EXPIRED,
        Reason.UNKNOWN_OFFER,
        Reason.UNKNOWN_MODEL,
        Reason.CANNOT_OPEN_PROMPT,
        Reason.CHANNEL_UNKNOWN,
        Reason.CHANNEL_CLOSED,
        Reason.UNDERFUNDED,
    }
)
"""What a worker says of a job that it has no record of any more. It then looks at the job as at a
new one."""


@dataclass(slots=True)
class _Entry:
    """One key while anybody uses it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Idempotency:
    """The requests with a key of one gateway."""

    def __init__(self, client: PieceworkClient, clock: Clock, *, most_left: int) -> None:
        """`most_left` requests may run on at once whose callers have hung up."""
        self._client, self._clock, self._most_left = client, clock, most_left
        self._requests: Requests = client.store.requests
        self._entries: dict[RequestKey, _Entry] = {}
        self._left: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def turn(self, request: web.Request, budget: str, body: bytes) -> AsyncIterator[Purchase]:
        """Wait until no request with the same key runs, and say what is known of this one.

        Raises:
            ApiError: the key is malformed (400), came with another body or is in use by another
                process (409), or is one too many (429).
        """
        now = Timestamp(int(self._clock.wall()))
        given = request.headers.getall(HEADER, [])
        if not given:
            yield Purchase(self, budget, None, KnownRequest(now, {}))
            return
        known_as = RequestKey(budget, _hash_of_key(given))
        digest = hashlib.sha256(request.path.encode() + b"\0" + body).digest()
        await self._checked(known_as, digest)  # another body is refused at once
        entry = self._entries.setdefault(known_as, _Entry())
        entry.users += 1
        try:
            await entry.lock.acquire()
        except BaseException:
            self._leave(known_as, entry)
            raise
        purchase, opening = None, asyncio.ensure_future(self._opened(known_as, digest, now))
        try:
            known = await asyncio.shield(opening)
            purchase = Purchase(self, budget, known_as, known)
            yield purchase
        finally:
            if purchase is not None and purchase.left:
                self._run_on(known_as, entry, purchase.left)
            elif opening.done():
                self._end(known_as, entry)
            else:  # the caller has hung up while a thread records that this process works on it

                def opened(done: asyncio.Future[KnownRequest]) -> None:
                    if not done.cancelled():
                        done.exception()  # nobody is left to be told
                    self._end(known_as, entry)

                opening.add_done_callback(opened)

    async def close(self, _: web.Application) -> None:
        """Cancel what runs on without a caller."""
        for task in self._left:
            task.cancel()
        await asyncio.gather(*self._left, return_exceptions=True)

    @property
    def is_full(self) -> bool:
        """Whether as many run on without a caller as may."""
        return len(self._left) >= self._most_left

    def run(self, request: JobRequest, part: Part) -> JobRun:
        """Start a job."""
        return self._client.run(request, part)

    def reserve(
        self, requests: Sequence[TextRequest], parts: Sequence[Part]
    ) -> AbstractAsyncContextManager[tuple[Part, ...]]:
        """Hold what several requests may cost."""
        return self._client.reserve_many(requests, parts)

    def fetch(self, job: JobId) -> JobRun:
        """Follow a job again."""
        return self._client.resume(job)

    async def evidence(
        self, job: JobId, content: bytes, outputs: Mapping[int, bytes]
    ) -> EvidenceFile:
        """Make the evidence of a job that has ended."""
        return await make_evidence(self._client.context, job, Texts(content, outputs))

    async def is_paid(self, job: JobId) -> bool:
        """Whether any canvas of a job was paid."""
        store = self._client.store
        return bool(await store.run(store.receipts, job=job))

    async def _checked(self, known_as: RequestKey, digest: bytes) -> None:
        try:
            await asyncio.to_thread(self._requests.check, known_as, digest)
        except RequestDiffers as error:
            raise _reused(error) from None

    async def _opened(self, known_as: RequestKey, digest: bytes, now: Timestamp) -> KnownRequest:
        try:
            return await asyncio.to_thread(self._requests.open, known_as, digest, now)
        except RequestDiffers as error:
            raise _reused(error) from None
        except RequestFollowed as followed:
            raise _in_progress(followed) from None
        except TooManyRequests as error:
            code = "too_many_idempotency_keys"
            raise ApiError(429, "rate_limit_error", str(error), code=code) from None

    def _end(self, known_as: RequestKey, entry: _Entry) -> None:
        """Let the next one go. In this thread, because a cancelled task may not wait."""
        try:
            self._requests.close(known_as)
        finally:
            entry.lock.release()
            self._leave(known_as, entry)

    def _leave(self, known_as: RequestKey, entry: _Entry) -> None:
        entry.users -= 1
        if not entry.users:
            del self._entries[known_as]

    def _run_on(self, known_as: RequestKey, entry: _Entry, runs: list[JobRun]) -> None:
        """Follow jobs to their end whose caller has hung up. The key is in use until then."""

        async def follow() -> None:
            try:
                await asyncio.gather(*(_drain(run) for run in runs))
            finally:
                self._end(known_as, entry)

        task = asyncio.create_task(follow(), name="request without its caller")
        self._left.add(task)
        task.add_done_callback(self._left.discard)


class Purchase:
    """One request's jobs: new ones, or those that it led to before.

    Attributes:
        created_at: When the request came first.
        left: Jobs whose caller has hung up, and that run on.
    """

    def __init__(
        self, owner: Idempotency, budget: str, known_as: RequestKey | None, known: KnownRequest
    ) -> None:
        self._owner, self._budget, self._known_as = owner, budget, known_as
        self._jobs = known.jobs
        self.created_at = known.created_at
        self.left: list[JobRun] = []

    def part(self, number: int = 0) -> Part:
        """Return the part of this number, without a hold."""
        return Part(self._budget, None, self._known_as, number)

    @asynccontextmanager
    async def parts(self, requests: Sequence[TextRequest]) -> AsyncIterator[tuple[Part, ...]]:
        """Reserve what several requests may cost, all or nothing, before any of them starts.

        Nothing is reserved for those that have a job already. What no job has taken over at the end
        of the block is free again.

        Returns:
            One part for each request, to be given to `job`.

        Raises:
            ClientError: as `PieceworkClient.reserve_many`.
        """
        parts = {number: self.part(number) for number in range(len(requests))}
        new = [number for number in parts if number not in self._jobs]
        asked, whose = [requests[n] for n in new], [parts[n] for n in new]
        async with self._owner.reserve(asked, whose) as held:
            parts |= {part.number: part for part in held}
            yield tuple(parts.values())

    def exhibits(self, request: Any) -> Exhibits:
        """Collect the evidence of the jobs of an answer. `request` is the body that was sent."""
        return Exhibits(self._owner.evidence, request)

    async def starts_again(self, part: Part) -> bool:
        """Whether a part whose answer cannot be fetched is bought from the beginning.

        Only if nothing was paid for it. Its next `job` is a new one then.
        """
        known = self._jobs.get(part.number)
        if known is None or await self._owner.is_paid(known):
            return False
        del self._jobs[part.number]
        return True

    @asynccontextmanager
    async def job(self, request: JobRequest, part: Part) -> AsyncIterator[JobRun]:
        """Run a part, or fetch its answer again. Leaving the block early cancels a job.

        A job with a key runs on when the caller hangs up.

        Raises:
            ApiError: the worker no longer has the answer (410), or another process runs the
                request (409).
            ClientError: as `PieceworkClient.ask`.
        """
        known = self._jobs.get(part.number)
        run = self._owner.run(request, part) if known is None else self._owner.fetch(known)
        keep = False
        try:
            yield run
        except (asyncio.CancelledError, ConnectionError):
            keep = self._known_as is not None and not self._owner.is_full
            raise
        except Refusal as refusal:
            if known is None or refusal.reason not in GONE:
                raise
            raise _gone(refusal) from None
        except JobFollowed as followed:
            raise _in_progress(followed) from None
        finally:
            if keep:
                self.left.append(run)
            else:
                await run.aclose()


async def _drain(run: JobRun) -> None:
    try:
        with contextlib.suppress(PieceworkError):
            async for _ in run:
                pass
    finally:
        await run.aclose()


def _hash_of_key(given: list[str]) -> bytes:
    key = given[0]
    if len(given) > 1 or not 0 < len(key) <= MAX_KEY_CHARACTERS or not key.isascii():
        raise ApiError(
            400,
            "invalid_request_error",
            f"{HEADER} is one text of 1 to {MAX_KEY_CHARACTERS} ASCII characters",
            code="invalid_value",
            param=HEADER,
        )
    return hashlib.sha256(key.encode()).digest()


def _gone(refusal: Refusal) -> ApiError:
    return ApiError(
        410,
        "invalid_request_error",
        f"the worker no longer has the answer ({refusal}). It was paid for and is not bought "
        f"again. Send the request with another {HEADER}",
        code="answer_gone",
        may_retry=False,
    )


def _reused(error: RequestDiffers) -> ApiError:
    code, kind = "idempotency_key_reused", "invalid_request_error"
    return ApiError(409, kind, str(error), code=code, may_retry=False)


def _in_progress(followed: JobFollowed | RequestFollowed) -> ApiError:
    return ApiError(
        409,
        "invalid_request_error",
        str(followed),
        code="request_in_progress",
        retry_after_s=ASK_AGAIN_S,
    )
