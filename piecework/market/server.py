"""The index over HTTP.

    POST /v1/offers   a signed offer as protobuf bytes (`protocol.wire.encode_offer`)
    GET  /v1/offers   ?model= &max_price= &min_speed= &sort=price|speed &limit= &offset=
                      (a page ends early at 4 MiB: go on behind the offers that came)
    GET  /v1/offers/OPERATOR   the worker's last offer, also when it has expired
    POST /v1/dial     a registered operator's signed request to be dialled (`piecework.dialback`)
    POST /v1/audits   a client's signed report of an audit (`protocol.evidence.reports`)
    GET  /v1/workers/OPERATOR/audits   GET /v1/audits/ID (its evidence)   GET /v1/audits/ID/report
    GET  /v1/models   GET /v1/workers   ?limit= &offset=
    GET  /v1/history   GET /health   GET /metrics
    GET  /   GET /workers/OPERATOR   the explorer
    GET  /deployment.json   GET /market.json   GET /market.json.sig   what newcomers need

Checks run cheapest first: size, rate of the address, parsing, terms, signature, rate of the
operator, sequence, and only then the chain. Errors are `{"error": {"code", "message"}}`. An index
is never trusted by clients; these checks keep its list useful, not honest.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Protocol

import structlog
from aiohttp import hdrs, web

from piecework.base.clock import Clock, SystemClock
from piecework.base.connections import Networks
from piecework.base.dialling import Dialler
from piecework.base.http_server import BodyReader, BodyRefused, client_address
from piecework.base.rates import Rate, RateLimiter, peer_key
from piecework.chain.errors import ChainError
from piecework.chain.limits import DEVELOPMENT_CHAIN_IDS
from piecework.dialback import DialBackServer, DialRefused, chain_unavailable
from piecework.market.audit_reports import AuditReports, ChannelSource
from piecework.market.errors import Declined, OfferStoreError
from piecework.market.explorer import layout, offers, worker
from piecework.market.history import DAY_S
from piecework.market.limits import (
    ADDRESS_POST_BURST,
    ADDRESS_POSTS_PER_MINUTE,
    ADDRESS_READ_BURST,
    ADDRESS_READS_PER_MINUTE,
    MAX_BUCKETS,
    MAX_STANDINGS,
    OPERATOR_POST_BURST,
    OPERATOR_POSTS_PER_MINUTE,
    STANDING_LIFETIME_S,
    SWEEP_INTERVAL_S,
)
from piecework.market.listing import Listed, Query
from piecework.market.metrics import MarketMetrics
from piecework.market.offer_store import OfferStore
from piecework.market.rounds import repeat
from piecework.market.settlements import EventSource, follow
from piecework_protocol import wire
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_OFFER_BYTES
from piecework_protocol.offers import (
    OfferFault,
    OfferRejected,
    Standing,
    check_standing,
    check_terms,
    offer_signer,
)
from piecework_protocol.types import Address, Amount, Timestamp, parse_address, to_hex
from piecework_protocol.wire import SignedOffer

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_FAULT_STATUS = {
    OfferFault.BAD_SIGNATURE: 403,
    OfferFault.NOT_REGISTERED: 403,
    OfferFault.NOT_BONDED: 403,
    OfferFault.WRONG_RECEIVER: 403,
}
_DIAL_STATUS = {
    "malformed": 400,
    "clock_differs": 400,
    "bad_signature": 403,
    "not_registered": 403,
    "chain_unavailable": 503,
    "dials_busy": 503,
    "rate_limited": 429,
}


class Registered(Standing, Protocol):
    """What the index wants to know about a worker."""

    @property
    def stake(self) -> Amount: ...

    @property
    def owner(self) -> Address: ...

    @property
    def payout(self) -> Address: ...


class Registry(EventSource, ChannelSource, Protocol):
    """What the index reads from the chain; `chain.reader.ChainReader` is one."""

    @property
    def domain(self) -> Domain: ...

    async def worker(self, operator: Address) -> Registered | None: ...

    async def is_signer(self, operator: Address, key: Address) -> bool: ...


def _limiter(per_minute: int, burst: int) -> RateLimiter:
    return RateLimiter(Rate.per_minute(per_minute, burst), keys=MAX_BUCKETS)


@dataclass(frozen=True, slots=True)
class ExplorerSettings:
    """What its operator says of an index.

    Attributes:
        money: What prices are shown in.
        url: Where readers reach the index, if it is not where a request says.
        transactions: A block explorer's address of a transaction, with `{}` for its hash.
        files: What newcomers need, by its path: the deployment, and the descriptor if there is one.
        key: Who signed the descriptor.
    """

    money: layout.Money
    url: str | None = None
    transactions: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    key: Address | None = None


class IndexServer:
    """One index.

    Rates count by the client's address. A trusted proxy names it in X-Forwarded-For.
    """

    def __init__(
        self,
        store: OfferStore,
        registry: Registry,
        settings: ExplorerSettings,
        *,
        clock: Clock | None = None,
        trusted_proxies: Networks = (),
        dialler: Dialler | None = None,
    ) -> None:
        """dialler: None dials public addresses alone, and on a development chain all."""
        self._store, self._registry, self._settings = store, registry, settings
        self._trusted = trusted_proxies
        self._bodies = BodyReader(max_bytes=MAX_OFFER_BYTES, trusted=trusted_proxies)
        self._clock = clock or SystemClock()
        self._audits = AuditReports(store, registry, self._clock, trusted_proxies)
        self.metrics = MarketMetrics()
        self._posts = _limiter(ADDRESS_POSTS_PER_MINUTE, ADDRESS_POST_BURST)
        self._reads = _limiter(ADDRESS_READS_PER_MINUTE, ADDRESS_READ_BURST)
        self._operators = _limiter(OPERATOR_POSTS_PER_MINUTE, OPERATOR_POST_BURST)
        self._standings: OrderedDict[Address, tuple[float, Registered | None]] = OrderedDict()
        self._rows = offers.OfferRows(settings.money)
        self._log = structlog.get_logger("market")
        market = registry.domain
        public_only = market.chain_id not in DEVELOPMENT_CHAIN_IDS
        self.dials = DialBackServer(
            dialler or Dialler(public_only=public_only), market, self._is_bonded, self._clock
        )

    def application(self) -> web.Application:
        """The routes behind one guard, and the sweeper beside them."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_OFFER_BYTES)
        app.router.add_post("/v1/offers", self._publish)
        app.router.add_get("/v1/offers", self._offers)
        app.router.add_get("/v1/offers/{operator}", self._last_offer)
        app.router.add_post("/v1/dial", self._dial)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/workers", self._workers)
        app.router.add_get("/v1/workers/{operator}/audits", self._worker_audits)
        app.router.add_get("/v1/history", self._history)
        app.router.add_get("/workers/{operator}", self._worker_page)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._expose)
        app.router.add_get("/", self._page)
        for path in self._settings.files:
            app.router.add_get(path, self._file)
        self._audits.add_to(app)
        app.cleanup_ctx.append(self._working)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._limit(request)
            response = await handler(request)
        except Declined as declined:
            response = self._decline(declined)
        except BodyRefused as refused:
            response = self._decline(Declined(refused.status, refused.code, refused.message))
        except web.HTTPException as error:
            response = self._decline(Declined(error.status, "http", error.reason))
        except OfferStoreError as error:
            self._log.error("database", error=str(error))
            response = self._decline(
                Declined(503, "storage", "the index's database does not answer")
            )
        response.headers[hdrs.X_CONTENT_TYPE_OPTIONS] = "nosniff"
        if request.method == "GET":
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*"  # public facts, no cookies
        return response

    def _limit(self, request: web.Request) -> None:
        if request.path == "/health":
            return
        buckets = self._posts if request.method == "POST" else self._reads
        client = peer_key(client_address(request, self._trusted))
        wait = buckets.take(client, self._clock.monotonic())
        if wait:
            raise Declined(
                429, "rate_limited", "too many requests from this address", retry_after_s=wait
            )

    def _decline(self, declined: Declined) -> web.Response:
        self.metrics.declined(declined.code)
        headers = {}
        if declined.retry_after_s is not None:
            headers[hdrs.RETRY_AFTER] = str(int(declined.retry_after_s) + 1)
        return web.json_response(declined.body(), status=declined.status, headers=headers)

    # --- publishing

    async def _publish(self, request: web.Request) -> web.Response:
        data = await self._bodies.read(request)
        known, listed = await self.accept(data)
        offer = listed.signed.offer
        body = {
            "accepted": True,
            "operator": to_hex(offer.operator),
            "sequence": offer.sequence,
            "expires_at": offer.expires_at,
        }
        return web.json_response(body, status=200 if known else 201)

    async def accept(self, data: bytes) -> tuple[bool, Listed]:
        """Verify offer bytes and keep them; whether they were here already. `Declined` says why
        not."""
        now = self._now()
        try:
            signed = wire.decode_offer(data)
            check_terms(signed.offer, now)
            signer = offer_signer(self._registry.domain, signed)
            # Only a good signature may use up an operator's rate; anybody could write its address
            # otherwise.
            if signer == signed.offer.operator:
                self._limit_operator(signed.offer.operator)
            known = self._store.is_known(signed)
            stake = await self._verify_standing(signed, signer)
        except MalformedInput as error:
            raise Declined(400, "malformed", str(error)) from None
        except OfferRejected as error:
            status = _FAULT_STATUS.get(error.fault, 400)
            raise Declined(status, error.fault.value, error.message) from None
        except ChainError as error:
            self._log.warning("chain", error=str(error))
            raise Declined(
                503, "chain_unavailable", "the chain does not answer", retry_after_s=5
            ) from None
        listed = Listed(signed, data, stake, now)
        if not known:
            # Another post, or another instance, may have been first since the check above.
            known = not await self._store.put(listed, now)
        if not known:
            self.metrics.accepted()
        return known, listed

    def _limit_operator(self, operator: Address) -> None:
        wait = self._operators.take(operator, self._clock.monotonic())
        if wait:
            raise Declined(
                429, "rate_limited", "too many offers of this worker", retry_after_s=wait
            )

    async def _verify_standing(self, signed: SignedOffer, signer: Address) -> Amount:
        operator = signed.offer.operator
        standing = await self._standing(operator)
        session_key = signer != operator and await self._registry.is_signer(operator, signer)
        check_standing(signed.offer, signer, standing, session_key=session_key)
        if session_key:
            self._limit_operator(operator)
        return standing.stake if standing is not None else Amount(0)

    async def _standing(self, operator: Address) -> Registered | None:
        known = self._standings.get(operator)
        moment = self._clock.monotonic()
        if known is None or moment > known[0] + STANDING_LIFETIME_S:
            known = (moment, await self._registry.worker(operator))
            self._standings[operator] = known
            while len(self._standings) > MAX_STANDINGS:
                self._standings.popitem(last=False)
        return known[1]

    # --- dialling back

    async def _dial(self, request: web.Request) -> web.Response:
        try:
            found = await self.dials.answer(await self._bodies.read(request))
        except DialRefused as error:
            status = _DIAL_STATUS[error.code]
            raise Declined(
                status, error.code, error.message, retry_after_s=error.retry_after_s
            ) from None
        for one in found["dialled"]:
            self.metrics.dialled(one["outcome"])
        return web.json_response(found)

    async def _is_bonded(self, operator: Address) -> bool:
        try:
            standing = await self._standing(operator)
        except ChainError:
            raise chain_unavailable() from None
        return standing is not None and standing.active

    # --- reading

    async def _offers(self, request: web.Request) -> web.Response:
        query = Query.parse(request.query)
        text = self._store.catalogue.offers_text(query, self._now())
        return web.json_response(text=text)

    async def _last_offer(self, request: web.Request) -> web.Response:
        """So that a worker whose journal was rolled back sees what it has signed."""
        operator = _operator(request)
        data = await self._store.last(operator)
        if data is None:
            raise Declined(404, "unknown_worker", "this index has seen no offer of that worker")
        offer = wire.decode_offer(data).offer
        listed = self._store.catalogue.get(operator)
        body = {
            "sequence": offer.sequence,
            "signed_offer": base64.b64encode(data).decode(),
            # Whether readers see it: others see a worker's live offer alone.
            "listed": listed is not None and listed.signed.offer.expires_at > self._now(),
        }
        return web.json_response(body)

    async def _models(self, request: web.Request) -> web.Response:
        query = Query.parse(request.query, only=("limit", "offset"))
        models = self._store.catalogue.models(self._now(), query.limit, query.offset)
        return web.json_response(models)

    async def _workers(self, request: web.Request) -> web.Response:
        query = Query.parse(request.query)
        return web.json_response(self._store.catalogue.workers(query, self._now()))

    async def _worker_audits(self, request: web.Request) -> web.Response:
        operator = _operator(request)
        if await self._store.last(operator) is None:
            raise Declined(404, "unknown_worker", "this index has seen no offer of that worker")
        return web.json_response((await self._audits.of(operator)).to_json())

    async def _history(self, _: web.Request) -> web.Response:
        history, since = self._store.history, self._now() - DAY_S
        body = {
            "samples": [asdict(one) for one in await history.samples(Timestamp(since))],
            "settled": [{"day": one.day, **asdict(one.settled)} for one in await history.settled()],
            "settled_in_all": asdict(await history.settled_in_all()),
        }
        return web.json_response(body)

    async def _page(self, request: web.Request) -> web.Response:
        query, now, history = Query.parse(request.query), self._now(), self._store.history
        query = replace(query, limit=min(query.limit, offers.MAX_SHOWN_OFFERS))
        overview = offers.Overview(
            self._store.catalogue.find(query, now),
            self._store.catalogue.models(now, offers.MAX_SHOWN_MODELS),
            self._store.catalogue.sample(now),
            await history.samples(Timestamp(now - DAY_S)),
            await history.settled(),
            await history.settled_in_all(),
        )
        url = (self._settings.url or _origin(request)).rstrip("/")  # a path is put behind it
        way = offers.WayIn(url, self._settings.key)
        return _html(offers.render(overview, query, way, self._rows))

    async def _file(self, request: web.Request) -> web.Response:
        return web.Response(
            body=self._settings.files[request.path], content_type="application/json"
        )

    async def _worker_page(self, request: web.Request) -> web.Response:
        operator, now, history = _operator(request), self._now(), self._store.history
        listed = self._store.catalogue.get(operator)
        if listed is not None and listed.signed.offer.expires_at <= now:
            listed = None
        uptime = await history.uptime(operator)
        if listed is None and uptime is None and await self._store.last(operator) is None:
            raise Declined(404, "unknown_worker", "this index has seen no offer of that worker")
        stake = None
        with contextlib.suppress(ChainError):
            standing = await self._standing(operator)
            stake = None if standing is None else standing.stake
        shown = worker.WorkerFacts(
            operator,
            listed,
            stake,
            uptime,
            await history.settlements(operator),
            await history.settled(operator),
            await history.settled_in_all(operator),
            self._settings.transactions,
            await self._audits.of(operator),
        )
        return _html(worker.render(shown, now, self._settings.money))

    async def _health(self, _: web.Request) -> web.Response:
        count = self._store.catalogue.count(self._now())
        return web.json_response({"status": "ok", "offers": count})

    async def _expose(self, _: web.Request) -> web.Response:
        body = self.metrics.exposition(self._store.catalogue.count(self._now()))
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: self.metrics.content_type})

    def _now(self) -> Timestamp:
        return Timestamp(int(self._clock.wall()))

    async def _working(self, _: web.Application) -> AsyncIterator[None]:
        store, log = self._store, self._log
        tasks = (
            asyncio.create_task(
                # Expired offers are not shown anyway, so that a failed round may wait.
                repeat(self._sweep, log.error, "database", SWEEP_INTERVAL_S, SWEEP_INTERVAL_S),
                name="market sweep",
            ),
            asyncio.create_task(store.follow(self._clock), name="market offers"),
            asyncio.create_task(
                follow(store.history, self._registry, log), name="market settlements"
            ),
        )
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _sweep(self) -> None:
        self._store.sweep(self._now())
        await self._store.record(self._now())


def _origin(request: web.Request) -> str:
    try:
        return str(request.url.origin())
    except ValueError:
        raise Declined(400, "bad_host", "the Host header names no host") from None


def _operator(request: web.Request) -> Address:
    try:
        return parse_address(request.match_info["operator"])
    except ValueError as error:
        raise Declined(400, "bad_parameter", str(error)) from None


def _html(text: str) -> web.Response:
    headers = {
        "Content-Security-Policy": layout.CONTENT_SECURITY_POLICY,
        "Referrer-Policy": "no-referrer",
    }
    return web.Response(text=text, content_type="text/html", headers=headers)
