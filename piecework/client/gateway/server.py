"""An OpenAI-compatible endpoint that pays per canvas out of the client's wallet.

It spends money. It listens on loopback unless told otherwise, and asks for an API key if there is
one. It takes JSON bodies only, so a web page cannot post to it. It logs no text. docs/gateway.md
lists the paths and what each of them takes.

Every error has OpenAI's shape. Its `code` is our error's own code, such as "insufficient_funds" or
"engine_failed". Where OpenAI has a word of its own, that word is used: "model_not_found",
"invalid_api_key", "context_length_exceeded".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal

import structlog
from aiohttp import hdrs, web

from piecework.base.amounts import Token
from piecework.base.clock import Clock, SystemClock
from piecework.base.connections import Networks
from piecework.base.http_server import BodyReader
from piecework.client.gateway.cors import Origins
from piecework.client.gateway.endpoints import Endpoints
from piecework.client.gateway.failures import SYSTEMONE, failure, translated
from piecework.client.gateway.formats.common import ApiError, FormatOptions
from piecework.client.gateway.formats.decisions import metadata
from piecework.client.gateway.formats.models import ModelPage, model_entry, model_list
from piecework.client.gateway.idempotency import Idempotency
from piecework.client.gateway.keys import BUDGET, Access
from piecework.client.gateway.line import WaitingLine
from piecework.client.gateway.metrics import GatewayMetrics
from piecework.client.gateway.packings import BODY_PACKINGS
from piecework.client.jobs.output_rates import RateOf
from piecework.client.sdk import PieceworkClient
from piecework_protocol.limits import MAX_CONTENT_BYTES
from piecework_protocol.objects import Offer

# JSON escapes can double a text of quotes and newlines; more than twice the largest prompt is not a
# prompt.
MAX_BODY_BYTES = 2 * MAX_CONTENT_BYTES

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
        strict_parameters: Whether a parameter that cannot be honoured is refused.
        token_usd_price: What one token of the currency is worth in dollars, for `usage`.
    """

    api_key: str | None
    max_concurrent: int
    heartbeat_s: float
    best_effort: bool = False
    max_waiting: int = 256
    wait_s: float = 60.0
    trusted_proxies: Networks = ()
    allowed_origins: tuple[str, ...] = ()
    strict_parameters: bool = False
    token_usd_price: Decimal | None = None


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
        self._idempotency = Idempotency(client, self._clock, most_left=options.max_concurrent)
        self._endpoints = Endpoints(
            client,
            self._line,
            self._idempotency,
            self.metrics,
            bodies=BodyReader(
                max_bytes=MAX_BODY_BYTES, trusted=options.trusted_proxies, packings=BODY_PACKINGS
            ),
            options=FormatOptions(options.best_effort, options.strict_parameters),
            heartbeat_s=options.heartbeat_s,
            usd_price=options.token_usd_price,
        )
        self._origins = Origins(options.allowed_origins)
        keys = client.store.api_keys
        self._access = Access(keys, options.api_key, self._origins, self._clock)
        self._log = structlog.get_logger("gateway")

    def application(self) -> web.Application:
        """The routes, each behind the same guard."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self._endpoints.chat)
        app.router.add_post("/v1/completions", self._endpoints.completions)
        app.router.add_post("/v1/responses", self._endpoints.responses)
        app.router.add_post("/v1/decisions", self._endpoints.decisions)
        app.router.add_post(SYSTEMONE, self._endpoints.systemone)
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
            return failure(translated(error, self._log), request.path)

    # --- the rest

    async def _models(self, request: web.Request) -> web.Response:
        page = ModelPage.parse(request.query)
        found = model_list(*await self._offered(), page=page)
        # `models` is what TypeSafe's SDK reads, at the same path.
        return web.json_response({**found, "models": [metadata(m) for m in found["data"]]})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        found = model_entry(name, *await self._offered())
        if found is None:
            message = f"nobody serves the model {name!r}"
            raise ApiError(
                404, "invalid_request_error", message, code="model_not_found", param="model"
            )
        return web.json_response(found)

    async def _offered(self) -> tuple[list[Offer], RateOf, Token, Decimal | None]:
        """What the entries of models are made of."""
        found = await self._client.offers()
        offers = [signed.offer for signed in found.offers]
        rates = await self._client.rates()
        return offers, rates, self._client.payment_token, self._options.token_usd_price

    async def _health(self, _: web.Request) -> web.Response:
        body = {"status": "ok", "running": self._line.running, "waiting": self._line.waiting}
        return web.json_response(body)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self.metrics.exposition(), headers={hdrs.CONTENT_TYPE: self.metrics.content_type}
        )
