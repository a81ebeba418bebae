"""An OpenAI-compatible endpoint that pays per canvas out of the client's wallet.

`/v1/chat/completions` (stream and not), `/v1/models`, `/health`, `/metrics`. It spends money. It
listens on loopback unless told otherwise, and asks for an API key if there is one. It takes
JSON bodies only, so a web page cannot post to it. It logs no text.

Every error has OpenAI's shape. Its `code` is our error's own code, such as "insufficient_funds" or
"engine_failed". Where OpenAI has a word of its own, that word is used: "model_not_found",
"invalid_api_key", "context_length_exceeded".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import hdrs, web

from piecework.base.amounts import Token
from piecework.base.clock import Clock, SystemClock
from piecework.base.connections import Networks
from piecework.base.errors import PieceworkError
from piecework.base.http_server import BodyReader, BodyRefused
from piecework.base.jsons import loads
from piecework.chain.errors import ChainError
from piecework.client.errors import (
    BudgetExceeded,
    InsufficientFunds,
    JobFailed,
    JobInterrupted,
    NoWorkerFits,
    RequestRefused,
    WorkerUnreachable,
)
from piecework.client.gateway import openai_format as oai
from piecework.client.gateway.cors import Origins
from piecework.client.gateway.idempotency import Idempotency, Purchase
from piecework.client.gateway.keepalive import answer_json
from piecework.client.gateway.keys import BUDGET, Access
from piecework.client.gateway.line import LineFull, Turn, WaitingLine, WaitOver
from piecework.client.gateway.metrics import GatewayMetrics
from piecework.client.gateway.openai_format import ApiError, ChatRequest, StopCutter
from piecework.client.jobs.events import CanvasText, JobEvent, JobFinished, JobStarted
from piecework.client.jobs.run import JobRun
from piecework.client.jobs.selection import BUSY_REASONS
from piecework.client.sdk import PieceworkClient
from piecework_protocol.errors import MalformedInput, ProtocolViolation, Reason, Refusal
from piecework_protocol.limits import MAX_CONTENT_BYTES
from piecework_protocol.types import to_hex

# JSON escapes can double a text of quotes and newlines; more than twice the largest prompt is no
# prompt.
MAX_BODY_BYTES = 2 * MAX_CONTENT_BYTES
WAIT_WHEN_FULL_S = 1.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How the gateway behaves.

    Attributes:
        api_key: A key without a budget of its own, beside those in the journal.
        max_concurrent: Requests that run at once.
        max_waiting: Requests that wait for their turn beside them.
        wait_s: How long a request may wait in all.
        best_effort: Requests that do not say may go to models without seed and trace.
        trusted_proxies: Addresses whose X-Forwarded-For is believed.
        allowed_origins: Origins whose pages may use the gateway.
    """

    api_key: str | None
    max_concurrent: int
    heartbeat_s: float
    best_effort: bool = False
    max_waiting: int = 256
    wait_s: float = 60.0
    trusted_proxies: Networks = ()
    allowed_origins: tuple[str, ...] = ()


class Gateway:
    """The HTTP application around one client."""

    def __init__(
        self,
        client: PieceworkClient,
        options: GatewayOptions,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._client, self._options, self._clock = client, options, clock or SystemClock()
        self.metrics = GatewayMetrics()
        self._line = WaitingLine(
            places=options.max_concurrent, waiting=options.max_waiting, wait_s=options.wait_s
        )
        self.metrics.watch(self._line)
        self._bodies = BodyReader(max_bytes=MAX_BODY_BYTES, trusted=options.trusted_proxies)
        self._origins = Origins(options.allowed_origins)
        keys = client.store.api_keys
        self._access = Access(keys, options.api_key, self._origins, self._clock)
        self._idempotency = Idempotency(client, self._clock, most_left=options.max_concurrent)
        self._log = structlog.get_logger("gateway")

    def application(self) -> web.Application:
        """The routes, each behind the same guard."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model}", self._model)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.on_response_prepare.append(self._origins.mark)
        app.on_cleanup.append(self._idempotency.close)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if self._origins.is_preflight(request):
                return self._origins.preflight(request)
            if request.path != "/health":
                request[BUDGET] = await self._access.admit(request)
            return await handler(request)
        except ConnectionError:
            raise  # the caller has hung up
        except Exception as error:  # noqa: BLE001  a fault of ours has OpenAI's shape too
            return _failure(self._translated(error))

    def _translated(self, error: Exception) -> ApiError:
        """Return what the caller is told of an error."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, BodyRefused):
            kind = "invalid_request_error" if error.status < 500 else "service_unavailable"
            return ApiError(error.status, kind, error.message, code=error.code)
        if isinstance(error, PieceworkError):
            failure = as_api_error(error)
            self._log.warning("request failed", status=failure.status, code=failure.code)
            return failure
        if isinstance(error, web.HTTPException):
            code = error.reason.lower().replace(" ", "_")
            return ApiError(error.status, "invalid_request_error", error.reason, code=code)
        self._log.error("fault", exc_info=error)
        return ApiError(500, "server_error", "the gateway has a fault", code="internal_error")

    # --- chat

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":
            raise ApiError(
                415, "invalid_request_error", "the body is application/json", code="not_json"
            )
        raw = await self._bodies.read(request)
        try:
            body = loads(raw)
        except ValueError:
            raise ApiError(
                400, "invalid_request_error", "the body is not JSON", code="not_json"
            ) from None
        try:
            chat = oai.parse_chat(body, best_effort=self._options.best_effort)
        except MalformedInput as error:
            raise oai.as_malformed(error) from None
        with self.metrics.request(chat.stream):
            async with self._idempotency.turn(request, request[BUDGET], raw) as purchase:
                return await self._in_turn(request, chat, purchase)

    async def _in_turn(
        self, request: web.Request, chat: ChatRequest, purchase: Purchase
    ) -> web.StreamResponse:
        """Answer when it is this request's turn. While all workers are busy it waits in line."""
        busy: NoWorkerFits | None = None
        try:
            async with self._line.turn(chat.request.model, request[BUDGET]) as turn:
                while True:
                    try:
                        return await self._answer(request, chat, purchase, turn)
                    except NoWorkerFits as error:
                        if error.retry_after_s is None:
                            raise
                        busy = error
                    await turn.again(busy.retry_after_s or WAIT_WHEN_FULL_S)
        except LineFull as full:
            raise ApiError(
                429,
                "rate_limit_error",
                str(full),
                code="too_many_requests",
                retry_after_s=WAIT_WHEN_FULL_S,
            ) from None
        except WaitOver as over:
            if busy is not None:
                raise busy from None
            raise ApiError(
                503,
                "service_unavailable",
                str(over),
                code="wait_over",
                retry_after_s=WAIT_WHEN_FULL_S,
            ) from None

    async def _answer(
        self, request: web.Request, chat: ChatRequest, purchase: Purchase, turn: Turn
    ) -> web.StreamResponse:
        async with purchase.job(chat.request, purchase.part()) as run:
            events = aiter(run)
            accepted = await _first(events)
            turn.accepted()
            answer = _Reply(
                chat,
                accepted,
                run,
                self.metrics,
                created=purchase.created_at,
                token=self._client.payment_token,
            )
            if chat.stream:
                return await self._stream(request, answer, events)
            return await answer_json(
                request,
                answer.collect(events),
                heartbeat_s=self._options.heartbeat_s,
                as_api_error=as_api_error,
            )

    async def _stream(
        self, request: web.Request, answer: _Reply, events: AsyncIterator[JobEvent]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: "text/event-stream"})
        await response.prepare(request)
        try:
            await _send(response, answer.opening())
            async with contextlib.aclosing(self._with_heartbeats(response, events)) as beating:
                async for event in beating:
                    piece = answer.take(event)
                    if piece is not None:
                        await _send(response, piece)
            for piece in answer.closing():
                await _send(response, piece)
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
        except PieceworkError as error:
            # OpenAI's SDK takes a stream that merely ends for a success: say it, then reset the
            # socket.
            failure = as_api_error(error)
            self._log.warning("stream failed", job=answer.job, code=failure.code)
            self.metrics.failed(failure.code)
            await _send(response, failure.body())
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _with_heartbeats(
        self, response: web.StreamResponse, events: AsyncIterator[JobEvent]
    ) -> AsyncGenerator[JobEvent, None]:
        """The events, with a comment line after each silence: proxies close silent streams."""
        while True:
            waiting = asyncio.ensure_future(anext(events, None))
            try:
                while not (await asyncio.wait({waiting}, timeout=self._options.heartbeat_s))[0]:
                    await response.write(b": denoising\n\n")
            finally:
                if not waiting.done():
                    waiting.cancel()
            event = waiting.result()
            if event is None:
                return
            yield event

    # --- the rest

    async def _models(self, _: web.Request) -> web.Response:
        models = await self._model_list()
        return web.json_response({"object": "list", "data": list(models.values())})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        models = await self._model_list()
        if name not in models:
            message = f"nobody serves the model {name!r}"
            raise ApiError(
                404, "invalid_request_error", message, code="model_not_found", param="model"
            )
        return web.json_response(models[name])

    async def _model_list(self) -> dict[str, dict[str, Any]]:
        found = await self._client.offers()
        offers = (signed.offer for signed in found.offers)
        return oai.model_list(offers, self._client.payment_token)

    async def _health(self, _: web.Request) -> web.Response:
        body = {"status": "ok", "running": self._line.running, "waiting": self._line.waiting}
        return web.json_response(body)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self.metrics.exposition(), headers={hdrs.CONTENT_TYPE: self.metrics.content_type}
        )


class _Reply:
    """One answer as it grows: what to show, when to stop, and what it cost."""

    def __init__(
        self,
        chat: ChatRequest,
        accepted: JobStarted,
        run: JobRun,
        metrics: GatewayMetrics,
        *,
        created: int,
        token: Token,
    ) -> None:
        self._chat, self._accepted, self._run, self._metrics = chat, accepted, run, metrics
        self._token = token
        self._head = oai.Head("chatcmpl-" + accepted.job.hex()[:32], created, accepted.model)
        self._cutter = StopCutter(chat.stop)
        self._canvases: list[CanvasText] = []
        self._text: list[str] = []
        self._ended: JobFinished | None = None
        self.job = to_hex(accepted.job)

    async def collect(self, events: AsyncIterator[JobEvent]) -> dict[str, Any]:
        """The answer of a request that does not stream, when the job has ended."""
        async for event in events:
            self.take(event)
        return self.whole()

    def opening(self) -> dict[str, Any]:
        return oai.chunk(self._head, {"role": "assistant", "content": ""})

    def take(self, event: JobEvent) -> dict[str, Any] | None:
        """Take in an event and return a chunk to send if it shows anything new."""
        if isinstance(event, JobStarted):
            self._accepted = event  # the next worker took it, because the first went away
            return None
        if isinstance(event, JobFinished):
            self._ended = event
            return self._shown(self._cutter.feed("", last=True))
        if not isinstance(event, CanvasText):
            return None
        self._canvases.append(event)
        if not event.again:
            self._metrics.canvas(event.tokens, event.steps, event.amount)
        piece = self._shown(self._cutter.feed(event.text, last=event.last))
        if self._cutter.stopped and not event.last:
            self._run.cancel()
        return piece

    def _shown(self, text: str) -> dict[str, Any] | None:
        if not text:
            return None
        self._text.append(text)
        return oai.chunk(self._head, {"content": text})

    def closing(self) -> list[dict[str, Any]]:
        """The last chunks of a stream: why it ended, what it cost, and usage if asked for."""
        ended = self._end()
        reason = oai.finish_reason(ended.finish, stopped=self._cutter.stopped)
        final = oai.chunk(self._head, {}, reason)
        final["piecework"] = self._ours(ended)
        if not self._chat.include_usage:
            return [final]
        return [final, {**oai.chunk(self._head, None), "usage": oai.usage(ended)}]

    def whole(self) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        ended = self._end()
        reason = oai.finish_reason(ended.finish, stopped=self._cutter.stopped)
        more = {"usage": oai.usage(ended), "piecework": self._ours(ended)}
        return oai.completion(self._head, "".join(self._text), reason, more)

    def _ours(self, ended: JobFinished) -> dict[str, Any]:
        return oai.piecework_object(self._accepted, ended, self._canvases, self._token)

    def _end(self) -> JobFinished:
        if self._ended is None:
            raise WorkerUnreachable("the job ended without a word")
        return self._ended


async def _first(events: AsyncIterator[JobEvent]) -> JobStarted:
    """The acceptance, before which nothing is answered: until then a failure is an HTTP status."""
    async for event in events:
        if isinstance(event, JobStarted):
            return event
    raise WorkerUnreachable("no worker accepted the job")


async def _send(response: web.StreamResponse, value: Mapping[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n")


def _failure(error: ApiError) -> web.Response:
    headers = {} if error.may_retry else {"x-should-retry": "false"}
    if error.retry_after_s is not None:
        headers[hdrs.RETRY_AFTER] = str(max(1, math.ceil(error.retry_after_s)))
    return web.json_response(error.body(), status=error.status, headers=headers)


def as_api_error(error: PieceworkError) -> ApiError:
    """Return our error in OpenAI's shape. The status says who can do something about it.

    402: no money. 429: a budget is used up. 400 and 404: the request. 502: a job that began and
    went wrong. 503: nobody can take it now. 500: the client itself.
    """
    if isinstance(error, NoWorkerFits):
        return _no_worker(error)
    if isinstance(error, Refusal):
        return _refused(error)
    shape = next((shape for kinds, shape in _SHAPES if isinstance(error, kinds)), _SERVER)
    return ApiError(
        shape.status, shape.kind, str(error), code=error.code, may_retry=shape.may_retry
    )


def _no_worker(error: NoWorkerFits) -> ApiError:
    if isinstance(error, RequestRefused):
        kind = "invalid_request_error"
        return ApiError(400, kind, str(error), code=error.code, param=error.param)
    wait = error.retry_after_s
    if wait is not None:
        kind = "service_unavailable"
        return ApiError(503, kind, str(error), code=error.code, retry_after_s=wait)
    if error.unknown_model:
        return ApiError(404, "invalid_request_error", str(error), code=error.code, param="model")
    return ApiError(503, "service_unavailable", str(error), code=error.code)


def _refused(refusal: Refusal) -> ApiError:
    text, kind = str(refusal), "invalid_request_error"
    if refusal.reason is Reason.PROMPT_TOO_LONG:
        return ApiError(400, kind, text, code="context_length_exceeded", param="messages")
    if refusal.reason is Reason.PROMPT_REFUSED:
        return ApiError(400, kind, text, code=refusal.code, param="messages")
    if refusal.reason in (Reason.BAD_PARAMETERS, Reason.OVERSIZED):
        # A worker names the parameter first: "temperature_end is 0, outside …".
        param = oai.PARAMETERS.get(refusal.message.partition(" ")[0])
        return ApiError(400, kind, text, code=refusal.code, param=param)
    if refusal.reason in BUSY_REASONS:
        wait = refusal.retry_after_s or WAIT_WHEN_FULL_S
        kind = "service_unavailable"
        return ApiError(503, kind, text, code=refusal.code, retry_after_s=wait)
    return ApiError(503, "service_unavailable", text, code=refusal.code)


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a kind of error looks in HTTP."""

    status: int
    kind: str
    may_retry: bool = True


_SERVER = _Shape(500, "server_error")
_UNAVAILABLE = _Shape(503, "service_unavailable")
# Something may have been paid, so the SDK must not repeat the request by itself.
_UPSTREAM = _Shape(502, "upstream_error", may_retry=False)
_SHAPES: tuple[tuple[tuple[type[PieceworkError], ...], _Shape], ...] = (
    ((InsufficientFunds,), _Shape(402, "insufficient_quota")),
    ((BudgetExceeded,), _Shape(429, "insufficient_quota", may_retry=False)),
    ((ProtocolViolation, JobFailed, JobInterrupted), _UPSTREAM),
    ((WorkerUnreachable, ChainError), _UNAVAILABLE),
)
