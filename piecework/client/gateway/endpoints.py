"""The endpoints that run jobs: a body in, an answer out, whole or as a stream.

A failure before the first job is accepted is an HTTP status. A failure after a stream began is an
event of the stream, and then the socket is reset: OpenAI's SDK takes a stream that merely ends for
a success.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import structlog
from aiohttp import hdrs, web

from piecework.base.http_server import BodyReader
from piecework.base.jsons import loads
from piecework.client.gateway.answers import Answers, read
from piecework.client.gateway.bill import Bill
from piecework.client.gateway.exhibits import Exhibits, SelfProving, signed
from piecework.client.gateway.failures import translated
from piecework.client.gateway.formats import chat, completions, decisions, responses
from piecework.client.gateway.formats.asks import Ask, Called, Free, Structured
from piecework.client.gateway.formats.common import (
    ApiError,
    FormatOptions,
    Head,
    Totals,
    named,
)
from piecework.client.gateway.formats.decisions import Asked, ReadAsk
from piecework.client.gateway.formats.pieces import Frame, Piece, Reply
from piecework.client.gateway.formats.surrogates import check_surrogates, may_have_surrogates
from piecework.client.gateway.idempotency import Idempotency, Purchase
from piecework.client.gateway.keepalive import answer_json
from piecework.client.gateway.keys import BUDGET
from piecework.client.gateway.line import WaitingLine
from piecework.client.gateway.metrics import GatewayMetrics
from piecework.client.gateway.turns import Turns
from piecework.client.sdk import PieceworkClient
from piecework_protocol.types import to_hex

IGNORED_HEADER = "x-piecework-ignored"
REQUEST_ID_HEADER = "x-typesafe-request-id"
STRUCTURED_PATIENCE_S = 50.0
"""Proxies close a connection that is silent for a minute."""
DONE = b"data: [DONE]\n\n"

ReadFormat = Callable[
    [str, tuple[Asked, ...], list[list[float]], Totals, Mapping[str, Any]], dict[str, Any]
]


@dataclass(frozen=True, slots=True)
class TextFormat:
    """A format whose answers are text. `prefix` begins the ids of its answers."""

    name: str
    prefix: str
    parse: Callable[[Any, FormatOptions], Ask]
    reply: Callable[[Ask], Reply]


CHAT = TextFormat("chat", "chatcmpl-", chat.parse_chat, chat.ChatReply)
COMPLETIONS = TextFormat(
    "completions",
    "cmpl-",
    completions.parse_completion,
    completions.CompletionReply,
)
RESPONSES = TextFormat("responses", "resp_", responses.parse_response, responses.ResponseReply)


class Endpoints:
    """What all endpoints that run jobs share."""

    def __init__(
        self,
        client: PieceworkClient,
        line: WaitingLine,
        idempotency: Idempotency,
        metrics: GatewayMetrics,
        *,
        bodies: BodyReader,
        options: FormatOptions,
        heartbeat_s: float,
        usd_price: Decimal | None,
    ) -> None:
        self._client, self._line, self._metrics = client, line, metrics
        self._idempotency, self._bodies, self._options = idempotency, bodies, options
        self._heartbeat_s, self._usd_price = heartbeat_s, usd_price
        self._log = structlog.get_logger("gateway")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat completion."""
        return await self._text(request, CHAT)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """Answer a completion."""
        return await self._text(request, COMPLETIONS)

    async def responses(self, request: web.Request) -> web.StreamResponse:
        """Answer a response."""
        return await self._text(request, RESPONSES)

    async def decisions(self, request: web.Request) -> web.Response:
        """Answer a decision."""
        parse, render = decisions.parse_decision, decisions.decision
        return await self._read(request, parse, render)

    async def systemone(self, request: web.Request) -> web.Response:
        """Answer a decision in TypeSafe's shape."""
        parse, render = decisions.parse_systemone, decisions.systemone
        return await self._read(request, parse, render)

    async def _body(self, request: web.Request) -> tuple[bytes, Any]:
        """Read a body, and return its bytes and its JSON."""
        kind = "invalid_request_error"
        if request.content_type != "application/json":
            raise ApiError(415, kind, "the body is application/json", code="not_json")
        raw = await self._bodies.read(request)
        try:
            body = loads(raw)
        except ValueError:
            raise ApiError(400, kind, "the body is not JSON", code="not_json") from None
        if may_have_surrogates(raw):
            await asyncio.to_thread(check_surrogates, body)
        return raw, body

    # --- text

    async def _text(self, request: web.Request, form: TextFormat) -> web.StreamResponse:
        raw, body = await self._body(request)
        # A large schema takes a while to judge. The loop goes on meanwhile.
        ask = await asyncio.to_thread(form.parse, body, self._options)
        with self._metrics.request(form.name, stream=ask.stream):
            async with self._idempotency.turn(request, request[BUDGET], raw) as purchase:
                exhibits = purchase.exhibits(body) if ask.wanted.evidence else None
                return await self._answer(request, form, ask, purchase, exhibits)

    async def _answer(
        self,
        request: web.Request,
        form: TextFormat,
        ask: Ask,
        purchase: Purchase,
        exhibits: Exhibits | None,
    ) -> web.StreamResponse:
        bill = Bill(self._client.payment_token, self._usd_price, ask.ignored)
        turns = Turns(self._line, purchase, request[BUDGET])
        answers = Answers(ask, turns, self._metrics, bill, exhibits)
        reply = form.reply(ask)
        if exhibits is not None:
            context = self._client.context
            reply = SelfProving(reply, exhibits, context.domain, context.wallet.authorizer)
        with self._bought_once(bill):
            async with answers.running() as pieces:
                first = await anext(pieces)
                head = _head(form.prefix, purchase.created_at, ask, bill)
                if ask.stream:
                    return await self._stream(request, reply, head, bill, _again(first, pieces))
                return await answer_json(
                    request,
                    _collected(reply, head, bill, _again(first, pieces)),
                    heartbeat_s=self._heartbeat_s,
                    first_beat_s=self._first_beat(ask),
                    as_api_error=self._translated,
                    headers=_headers(ask.ignored),
                )

    @contextlib.contextmanager
    def _bought_once(self, bill: Bill) -> Iterator[None]:
        """Keep OpenAI's SDK from repeating by itself what may have been paid.

        A worker that took a job may be paid for it, even while the answer that failed is another.
        """
        try:
            yield
        except ConnectionError:
            raise  # the caller has hung up
        except Exception as error:
            if bill.first is None:
                raise
            told = self._translated(error)
            told.may_retry = False
            raise told from error

    def _translated(self, error: Exception) -> ApiError:
        return translated(error, self._log)

    def _first_beat(self, ask: Ask) -> float:
        """A structured answer may fail late, and then its status matters."""
        strict = isinstance(ask.plan, Free) and bool(ask.plan.strict)
        if strict or isinstance(ask.plan, Structured | Called):
            return max(self._heartbeat_s, STRUCTURED_PATIENCE_S)
        return self._heartbeat_s

    async def _stream(
        self,
        request: web.Request,
        reply: Reply,
        head: Head,
        bill: Bill,
        pieces: AsyncIterator[Piece],
    ) -> web.StreamResponse:
        headers = {hdrs.CONTENT_TYPE: "text/event-stream", **_headers(bill.ignored)}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        try:
            await _send(response, reply.opening(head))
            async with contextlib.aclosing(self._with_heartbeats(response, pieces)) as beating:
                async for piece in beating:
                    await _send(response, reply.take(piece))
            await _send(response, reply.closing(bill.totals(), bill.ours()))
            await response.write(DONE)
            await response.write_eof()
        except ConnectionError:
            raise  # the caller has hung up
        except Exception as error:  # noqa: BLE001  a fault of ours has OpenAI's shape too
            failure = self._translated(error)
            self._metrics.failed(failure.code)
            await _send(response, reply.failing(failure))
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _with_heartbeats(
        self, response: web.StreamResponse, pieces: AsyncIterator[Piece]
    ) -> AsyncGenerator[Piece, None]:
        """The pieces, with a comment line after each silence: proxies close silent streams."""
        while True:
            waiting = asyncio.ensure_future(anext(pieces, None))
            try:
                while not (await asyncio.wait({waiting}, timeout=self._heartbeat_s))[0]:
                    await response.write(b": denoising\n\n")
            finally:
                if not waiting.done():
                    waiting.cancel()
            piece = waiting.result()
            if piece is None:
                return
            yield piece

    # --- decisions

    async def _read(
        self,
        request: web.Request,
        parse: Callable[[Any, FormatOptions], ReadAsk],
        render: ReadFormat,
    ) -> web.Response:
        raw, parsed = await self._body(request)
        ask = parse(parsed, self._options)
        bill = Bill(self._client.payment_token, self._usd_price, ask.ignored)
        with self._metrics.request("decisions", stream=False):
            async with self._idempotency.turn(request, request[BUDGET], raw) as purchase:
                turns = Turns(self._line, purchase, request[BUDGET])
                exhibits = purchase.exhibits(parsed) if ask.wanted.evidence else None
                with self._bought_once(bill):
                    answers = await read(ask, turns, self._metrics, bill, exhibits)
        first = bill.first
        model = ask.wanted.model if first is None else first.model
        ours = bill.ours() if exhibits is None else exhibits.beside(bill.ours())
        body = render(model, ask.asked, answers, bill.totals(), ours)
        if exhibits is not None:
            context = self._client.context
            body = signed(body, context.domain, context.wallet.authorizer)
        headers = _headers(ask.ignored)
        if first is not None:
            headers[REQUEST_ID_HEADER] = to_hex(first.job)
        return web.json_response(body, headers=headers)


def _head(prefix: str, created: int, ask: Ask, bill: Bill) -> Head:
    """Name the answer after its first job."""
    if bill.first is None:  # a schema with one document: there was nothing to ask
        return Head(prefix + secrets.token_hex(16), created, ask.wanted.model)
    return Head(prefix + bill.first.job.hex()[:32], created, bill.first.model)


async def _collected(
    reply: Reply, head: Head, bill: Bill, pieces: AsyncIterator[Piece]
) -> dict[str, Any]:
    """The answer of a request that does not stream, when its jobs have ended."""
    for _ in reply.opening(head):
        pass
    async for piece in pieces:
        for _ in reply.take(piece):
            pass
    return reply.whole(head, bill.totals(), bill.ours())


async def _again(first: Piece, pieces: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    """The pieces, with the first one again."""
    yield first
    async for piece in pieces:
        yield piece


def _headers(ignored: tuple[str, ...]) -> dict[str, str]:
    return {IGNORED_HEADER: ", ".join(named(ignored))} if ignored else {}


async def _send(response: web.StreamResponse, frames: Any) -> None:
    for frame in frames:
        await response.write(_encoded(frame))


def _encoded(frame: Frame) -> bytes:
    """Encode an event. In ASCII, as some clients end a line at U+2028 or U+0085."""
    name = b"" if frame.event is None else b"event: " + frame.event.encode() + b"\n"
    return name + b"data: " + json.dumps(frame.data).encode() + b"\n\n"
