"""A server that behaves as vLLM 0.32 was seen to (docs/vllm.md), over real sockets on loopback.

Bodies, statuses and the shape of the chunks are those that were recorded from a real process. What
it generates is a function of the position alone, so that a continuation behind a longer prompt is
the same text going on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_node.vllm import checkpoint as vllm_checkpoint

CHECKPOINT: Final = vllm_checkpoint.load(bundled_checkpoint_path())
"""The bundled checkpoint's tokenizer and canvases: what the server is said to serve."""
CANVAS: Final = CHECKPOINT.canvas_size
EOS: Final = min(CHECKPOINT.codec.eos_ids)
MAX_MODEL_LEN: Final = 512
ENGINE_DEAD: Final = "EngineCore encountered an issue. See stack trace (above) for the root cause."
WORDS: Final = tuple(
    token for token in range(5, 120) if token not in CHECKPOINT.codec.control_ids and token != EOS
)


def token_at(position: int) -> int:
    """The token that stands at a position, counted from the start of the prompt."""
    return WORDS[position * 7 % len(WORDS)]


@dataclass
class VllmServer:
    """One endpoint. Knobs are plain members, to be turned while it runs."""

    name: str = "served-name"
    max_model_len: int = MAX_MODEL_LEN
    key: str = ""
    tokens_a_chunk: int = 1
    ends_at: int | None = None
    """Position at which the end-of-text token comes."""
    breaks_at: int | None = None
    """Position at which `how` happens instead of a token."""
    how: str = "dies"
    breaks_once: set[int] = field(default_factory=set)
    """Positions at which `how` happens the first time only."""
    late_looks: int = 0
    """So many questions after its health get no good answer."""
    holds_at: int | None = None
    """Position at which a stream waits for `go`."""
    health: int = 200
    shift: int = 0
    """Added to every id that /tokenize gives: another tokenizer."""
    omits_ids: bool = False
    padding: int = 0
    """Bytes of nothing in the list of models."""
    completion_status: int | None = None
    """An HTTP status to answer every completion with."""
    takes_canvases: bool = False
    """Whether it has pull request 57250. Otherwise it ignores what it does not know."""
    leaves_out: str = ""
    """What an answer with a canvas lacks: "probabilities" or "positions"."""
    canvas_bodies: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    peak: int = 0
    """Requests that ran at once, at most."""
    aborted: int = 0
    generated: int = 0
    hosts: list[str] = field(default_factory=list)
    """The host that each question names."""
    looks: int = 0
    """Questions after its health."""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    port: int = 0
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen; on the same port as before if it ran before."""
        app = web.Application(middlewares=[self._authorized])
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/v1/completions", self._completions)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the port and break every stream off."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that requests change is so."""
        async with self.changed, asyncio.timeout(10):
            await self.changed.wait_for(condition)

    async def until_running(self, count: int) -> None:
        """Wait until that many requests run at once."""
        await self.until(lambda: self.running == count)

    async def until_looked_at(self, times: int) -> None:
        """Wait until its health was asked for so many times more."""
        seen = self.looks
        await self.until(lambda: self.looks >= seen + times)

    async def _on_wait(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    # --- the small questions

    @web.middleware
    async def _authorized(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.hosts.append(request.host)
        guarded = request.path.startswith("/v1")  # the rest answers to everybody, as it does there
        if guarded and self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    async def _health(self, _: web.Request) -> web.Response:
        self.looks += 1
        await self._on_wait()
        if self.late_looks:
            self.late_looks -= 1
            return web.Response(status=500)
        return web.Response(status=self.health)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.0"})

    async def _models(self, _: web.Request) -> web.Response:
        card = {
            "id": self.name,
            "object": "model",
            "created": 1795574306,
            "owned_by": "vllm",
            "root": "/models/somewhere",
            "parent": None,
            "max_model_len": self.max_model_len,
            "permission": [],
            "padding": " " * self.padding,
        }
        return web.json_response({"object": "list", "data": [card]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        ids = [i + self.shift for i in CHECKPOINT.codec.encode_template(body["prompt"])]
        answer = {
            "count": len(ids),
            "max_model_len": self.max_model_len,
            "tokens": ids,
            "token_strs": None,
        }
        return web.json_response(answer)

    # --- completions

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if "vllm_xargs" in body:
            return self._canvas(body)
        self.bodies.append(body)
        await self._on_wait()
        prompt, most = body["prompt"], body["max_tokens"]
        if self.completion_status is not None:
            return _error(self.completion_status, "made up")
        if body["model"] != self.name:
            return _error(
                404, f"The model `{body['model']}` does not exist. Valid aliases: {self.name}."
            )
        if not prompt:
            return _error(400, "You must pass at least one prompt")
        if most < 1:
            return _error(400, f"max_tokens must be at least 1, got {most}.")
        if len(prompt) + most > self.max_model_len:
            return _error(
                400, f"This model's maximum context length is {self.max_model_len} tokens."
            )
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        if any(not 0 <= token < CHECKPOINT.vocab_size for token in prompt):
            await response.write(
                _event(_problem(400, "Token id is out of vocabulary")) + b"data: [DONE]\n\n"
            )
            return response
        self.running += 1
        self.peak = max(self.peak, self.running)
        await self._on_wait()
        try:
            await self._generate(request, response, body)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted += 1
            raise
        finally:
            self.running -= 1
            await asyncio.shield(self._on_wait())
        return response

    def _canvas(self, body: dict[str, Any]) -> web.Response:
        """Answer with one canvas. What stands at a position is what the model says there."""
        self.canvas_bodies.append(body)
        if self.completion_status is not None:
            return _error(self.completion_status, "made up")
        extra, size = body["vllm_xargs"], body["max_tokens"]
        seed = extra["diffusion_seed_canvas"]
        if self.takes_canvases and len(seed) != extra["diffusion_canvas_length"]:
            return _error(400, "diffusion_seed_canvas must have the length of the canvas")
        ids = [token_at(position) for position in range(size)]
        choice: dict[str, Any] = {"token_ids": ids, "logprobs": None, "finish_reason": "length"}
        if self.takes_canvases and extra.get("diffusion_read_only"):
            rows = [self._row(body["logprob_token_ids"], token) for token in ids]
            choice["logprobs"] = {"top_logprobs": rows}
        if self.leaves_out == "positions":
            ids.pop()
        return web.json_response({"object": "text_completion", "choices": [choice]})

    def _row(self, wanted: list[int], said: int) -> dict[str, float]:
        """The log probabilities at a position: the smaller the id, the likelier."""
        asked = wanted[1:] if self.leaves_out == "probabilities" and len(wanted) > 2 else wanted
        return {f"token_id:{token}": -token / 8 for token in (said, *asked)}

    async def _generate(
        self, request: web.Request, response: web.StreamResponse, body: dict[str, Any]
    ) -> None:
        prompt, most = body["prompt"], body["max_tokens"]
        ids: list[int] = []
        first = True
        for position in range(len(prompt), len(prompt) + most):
            if position == self.holds_at:
                await self._on_wait()
                await self.go.wait()
            if position == self.breaks_at or position in self.breaks_once:
                self.breaks_once.discard(position)
                await self._break(request, response, ids)
                return
            over = position == self.ends_at and not body.get("ignore_eos")
            ids.append(EOS if over else token_at(position))
            self.generated += 1
            last = over or position == len(prompt) + most - 1
            if len(ids) >= self.tokens_a_chunk or last:
                finish = ("stop" if over else "length") if last else None
                await response.write(self._chunk(ids, finish, prompt if first else None))
                ids, first = [], False
            if last:
                break
        await response.write(b"data: [DONE]\n\n")

    def _chunk(self, ids: list[int], finish: str | None, prompt: list[int] | None) -> bytes:
        choice: dict[str, Any] = {
            "index": 0,
            "text": "\ufffd",
            "logprobs": None,
            "finish_reason": finish,
            "stop_reason": None,
            "prompt_token_ids": prompt,
            "token_ids": ids,
        }
        if self.omits_ids:
            del choice["token_ids"], choice["prompt_token_ids"]
        return _event(
            {
                "id": "cmpl-884b056019420184",
                "object": "text_completion",
                "created": 1795574307,
                "model": self.name,
                "choices": [choice],
            }
        )

    async def _break(
        self, request: web.Request, response: web.StreamResponse, ids: list[int]
    ) -> None:
        if self.how == "resets":
            assert request.transport is not None
            request.transport.abort()
        elif self.how == "falls silent":
            await self._on_wait()
            await asyncio.Event().wait()
        else:
            if self.how == "dies":  # as when the engine's process was killed
                self.health = 503
            await response.write(self._last_words(ids)[self.how])

    def _last_words(self, ids: list[int]) -> dict[str, bytes]:
        done = b"data: [DONE]\n\n"
        return {
            "dies": _event(_problem(500, ENGINE_DEAD)) + done,
            "fails": _event(_problem(500, "made up")) + done,
            "declines": _event(_problem(400, "made up")) + done,
            "ends early": done,
            "stops before its time": self._chunk(ids, "length", None) + done,
            "ends without a word": b": nothing more\n",
            "aborts": self._chunk(ids, "abort", None) + done,
            "babbles": b"data: {not json\n\n",
            "is no stream of events": b"<html>\n",
            "never ends a line": b"data: " + b"x" * 1_000_000,
            "makes up a token": self._chunk([CHECKPOINT.vocab_size], None, None),
            "says too much": self._chunk([token_at(0)] * 600, None, None),
        }


@asynccontextmanager
async def servers(count: int = 1, **knobs: Any) -> AsyncIterator[list[VllmServer]]:
    """Started endpoints, stopped at the end."""
    made = [VllmServer(**knobs) for _ in range(count)]
    try:
        for server in made:
            await server.start()
        yield made
    finally:
        for server in made:
            server.go.set()
            await server.stop()


def _problem(code: int, message: str) -> dict[str, Any]:
    kind = (
        "BadRequestError"
        if code == 400
        else "NotFoundError"
        if code == 404
        else "InternalServerError"
    )
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _error(code: int, message: str) -> web.Response:
    return web.json_response(_problem(code, message), status=code)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
