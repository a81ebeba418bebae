"""One vLLM server over HTTP: questions with one answer, and streams of tokens.

All reads are bounded. Proxies come from the environment, as for every other request
(`piecework.base.http`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from piecework.base.http import HttpError, proxy_for
from piecework.base.jsons import loads
from piecework_node.errors import EndpointLost, EndpointUnfit, RequestDeclined
from piecework_node.vllm.wire import (
    MAX_BODY_BYTES,
    MAX_CANVAS_BYTES,
    CanvasAnswer,
    CanvasRequest,
    Chunk,
    End,
    ServedModel,
    canvas_body,
    completion_body,
    failure,
    max_line_bytes,
    parse_canvas,
    parse_ids,
    parse_line,
    parse_models,
    parse_version,
)

CONNECT_TIMEOUT_S: Final = 5.0
"""For a TCP and TLS handshake with a machine that is up. If it takes longer, the machine is
down.
"""


PROBE_IDS: Final = (5, 6)
"""Ids that every vocabulary has."""


@dataclass(frozen=True, slots=True)
class EndpointTimes:
    """Timeouts of an endpoint."""

    question_s: float = 10.0
    """For an answer that needs no GPU. vLLM's server answers beside its streams and may be busy
    with them.
    """
    silence_s: float = 180.0
    """Between two chunks of a stream, and before the first. A queue and a long prefill take minutes
    at worst.
    """


class VllmEndpoint:
    """A server at its base URL. The pool knows whether it is healthy."""

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        *,
        key: str,
        model: str,
        times: EndpointTimes,
    ) -> None:
        self._url, self._session, self._model, self._times = url.rstrip("/"), session, model, times
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    async def probe(self) -> ServedModel:
        """Ask whether it is healthy and what it serves. Raises `EndpointLost` or
        `EndpointUnfit`.
        """
        await self._ask("GET", "/health")
        return parse_models(await self._ask("GET", "/v1/models"), self._model)

    async def version(self) -> str:
        """Ask for vLLM's version."""
        return parse_version(await self._ask("GET", "/version"))

    async def tokenize(self, model: str, text: str) -> tuple[int, ...]:
        """Tokenize plain text, without added tokens."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        return parse_ids(await self._ask("POST", "/tokenize", body))

    async def canvas(
        self, model: str, request: CanvasRequest, canvas_size: int, vocab_size: int
    ) -> CanvasAnswer:
        """Denoise one given canvas. Raises `RequestDeclined`, `EndpointLost` or
        `EndpointUnfit`.
        """
        body = canvas_body(model, request, canvas_size)
        timeout = aiohttp.ClientTimeout(total=self._times.silence_s, sock_connect=CONNECT_TIMEOUT_S)
        async with self._answer("POST", "/v1/completions", json=body, timeout=timeout) as response:
            return parse_canvas(await _all(response, MAX_CANVAS_BYTES), vocab_size)

    async def takes_canvases(self, model: str, canvas_size: int, vocab_size: int) -> bool:
        """Say whether it takes given canvases.

        A server that does not know them ignores them. So one of a wrong length has to be declined,
        and a read has to be answered with what was asked for. A server that fails instead takes
        none. Whether it is lost is found out by what it is asked next.
        """
        short = CanvasRequest(PROBE_IDS, PROBE_IDS[:1] * (canvas_size - 1), label_ids=PROBE_IDS)
        read = CanvasRequest(PROBE_IDS, PROBE_IDS[:1] * canvas_size, label_ids=PROBE_IDS)
        try:
            await self.canvas(model, short, canvas_size, vocab_size)
        except RequestDeclined:
            pass
        except EndpointLost:
            return False
        else:
            return False
        try:
            answer = await self.canvas(model, read, canvas_size, vocab_size)
        except (RequestDeclined, EndpointLost):
            return False
        said = [set(PROBE_IDS) <= set(row) for row in answer.logprobs]
        return len(answer.token_ids) == canvas_size == len(said) and all(said)

    async def stream(
        self,
        model: str,
        prompt_ids: tuple[int, ...],
        max_tokens: int,
        vocab_size: int,
        *,
        ignore_eos: bool = False,
    ) -> AsyncGenerator[Chunk, None]:
        """Stream up to `max_tokens` tokens behind the prompt, as they come.

        Closing the iterator stops the engine. Raises `RequestDeclined`, `EndpointLost` or
        `EndpointUnfit`. A stream that ends without a reason is lost.
        """
        body = completion_body(model, prompt_ids, max_tokens, ignore_eos=ignore_eos)
        limit, finished = max_line_bytes(len(prompt_ids)), False
        timeout = aiohttp.ClientTimeout(
            sock_connect=CONNECT_TIMEOUT_S, sock_read=self._times.silence_s
        )
        options: dict[str, Any] = {"json": body, "timeout": timeout, "read_bufsize": limit // 2}
        async with self._answer("POST", "/v1/completions", **options) as response:
            while line := await _line(response, limit):
                chunk = parse_line(line, vocab_size)
                if isinstance(chunk, End):
                    break
                if chunk is not None and not finished:
                    finished = chunk.finish is not None
                    yield chunk
        if not finished:
            raise EndpointLost("the stream broke off")

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        timeout = aiohttp.ClientTimeout(
            total=self._times.question_s, sock_connect=CONNECT_TIMEOUT_S
        )
        async with self._answer(method, path, json=body, timeout=timeout) as response:
            return await _all(response)

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Make a request and yield a good answer. Whatever fails before its end becomes an error of
        ours.
        """
        url = self._url + path
        try:
            proxy = proxy_for(url)
        except HttpError as error:
            raise EndpointLost(str(error), certain=True) from None
        try:
            async with self._session.request(
                method,
                url,
                headers=self._headers,
                allow_redirects=False,
                proxy=proxy,
                **options,
            ) as response:
                if response.status != 200:
                    raise await _failed(response)
                yield response
        except (aiohttp.ClientConnectorError, ConnectionRefusedError):
            raise EndpointLost("nothing listens there", certain=True) from None
        except aiohttp.ClientPayloadError:
            raise EndpointLost("the stream broke off") from None
        except (aiohttp.ClientError, OSError) as error:
            kind = (
                "does not answer in time"
                if isinstance(error, TimeoutError)
                else "breaks the connection"
            )
            raise EndpointLost(f"the endpoint {kind}") from None


async def _failed(
    response: aiohttp.ClientResponse,
) -> RequestDeclined | EndpointLost | EndpointUnfit:
    try:
        body = loads(await _all(response))
    except ValueError:
        body = None
    if response.status == 503:  # vLLM's /health when its engine has died
        return EndpointLost("the engine behind the endpoint is dead", certain=True)
    return failure(response.status, body)


async def _all(response: aiohttp.ClientResponse, most: int = MAX_BODY_BYTES) -> bytes:
    data = bytearray()
    async for part in response.content.iter_chunked(64 * 1024):
        data += part
        if len(data) > most:
            raise EndpointLost(f"the endpoint answers more than {most} bytes")
    return bytes(data)


async def _line(response: aiohttp.ClientResponse, limit: int) -> bytes:
    try:
        return await response.content.readline()
    except (ValueError, HttpProcessingError):  # which of them depends on aiohttp's version
        raise EndpointLost(f"a line of the stream is longer than {limit} bytes") from None
