"""Several vLLM endpoints as one: which are healthy, and which takes the next request.

An endpoint is polled every few seconds, and at once when a stream on it breaks. One slow answer
does not make it down: it takes two, or a certain sign. One that comes back is verified as at the
start.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from piecework.base.clock import Clock
from piecework_node.errors import EndpointLost, EndpointUnfit, EngineStartError
from piecework_node.vllm.checkpoint import Shape
from piecework_node.vllm.endpoint import VllmEndpoint
from piecework_node.vllm.wire import ServedModel

FAILED_PROBES: Final = 2
"""After so many failed probes, one after the other, an endpoint that answers late counts as
down.
"""
TOKENIZER_PROBE: Final = "A fox, a lantern and a river: 12,345 größere Dinge."
"""Words, digits, punctuation and letters beyond ASCII. Tokenizers of two models differ somewhere in
it.
"""


@dataclass(frozen=True, slots=True)
class PoolTimes:
    """Times in seconds."""

    poll_s: float = 5.0
    """Between two polls of an endpoint."""
    start_s: float = 900.0
    """For the first endpoint to become healthy. Loading 50 GB from a slow disk takes minutes."""


class Health(enum.Enum):
    """The health of an endpoint."""

    UNKNOWN = "never seen"
    HEALTHY = "takes requests"
    SUSPECT = "takes no new requests until it is looked at"
    DOWN = "takes no requests"


@dataclass(slots=True)
class PooledEndpoint:
    """An endpoint and its state. `number` names it in logs, which hold no URL."""

    number: int
    endpoint: VllmEndpoint
    health: Health = Health.UNKNOWN
    served: ServedModel | None = None
    takes_canvases: bool = False
    """Whether it denoises given canvases, as templates and reads need it."""
    load: int = 0
    """Requests that run on it."""
    failures: int = 0
    trouble: str = "it was never asked"
    poll_now: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to poll it at once."""


class EndpointPool:
    """The endpoints. `on_down` is called when one goes down."""

    def __init__(
        self,
        endpoints: Sequence[VllmEndpoint],
        shape: Shape,
        times: PoolTimes,
        clock: Clock,
        log: Any,
    ) -> None:
        self.endpoints = [PooledEndpoint(i + 1, endpoint) for i, endpoint in enumerate(endpoints)]
        self.on_down: Callable[[PooledEndpoint], None] | None = None
        self.least_context = 1
        """In tokens. An endpoint with a shorter context cannot serve what is on offer."""
        self.needs_canvases = False
        """Whether the offer says that templates and reads are taken."""
        self._shape, self._times, self._clock, self._log = shape, times, clock, log
        self._news = asyncio.Condition()

    @property
    def alive(self) -> bool:
        """Whether any endpoint may still take requests."""
        return any(m.health in (Health.HEALTHY, Health.SUSPECT) for m in self.endpoints)

    @property
    def troubles(self) -> str:
        """What is wrong with each endpoint, for the operator."""
        return "; ".join(f"endpoint {m.number}: {m.trouble}" for m in self.endpoints if m.trouble)

    async def acquire(self, avoid: Collection[int] = ()) -> PooledEndpoint:
        """Wait for a healthy endpoint and take the least loaded one. Give it back with `release`.

        Endpoints whose numbers are in `avoid` are taken only if there is no other.
        """
        async with self._news:
            await self._news.wait_for(self._healthy)
            chosen = min(self._healthy(), key=lambda m: (m.number in avoid, m.load, m.number))
            chosen.load += 1
            return chosen

    def _healthy(self) -> list[PooledEndpoint]:
        return [m for m in self.endpoints if m.health is Health.HEALTHY]

    async def until(self, *, alive: bool) -> None:
        """Wait until some endpoint is alive, or none is."""
        async with self._news:
            await self._news.wait_for(lambda: self.alive is alive)

    def release(self, pooled: PooledEndpoint) -> None:
        """Record that a request on it is over."""
        pooled.load -= 1

    async def suspect(self, pooled: PooledEndpoint) -> None:
        """Give it no new request and poll it now, because a request broke on it."""
        if pooled.health is Health.HEALTHY:
            await self._set_health(pooled, Health.SUSPECT)
        pooled.poll_now.set()

    async def start(self, avoid: Collection[int] = ()) -> PooledEndpoint:
        """Wait for the first healthy endpoint. Those in `avoid` are asked last.

        Raises `EngineStartError` if one serves the wrong model, which waiting does not mend, or if
        none comes in time.
        """
        deadline = self._clock.monotonic() + self._times.start_s
        while True:
            for pooled in sorted(self.endpoints, key=lambda m: m.number in avoid):
                try:
                    pooled.served = await self._verify(pooled)
                except EndpointLost as lost:
                    pooled.trouble = str(lost)
                    continue
                except EndpointUnfit as unfit:
                    raise EngineStartError(f"endpoint {pooled.number}: {unfit}") from None
                pooled.trouble = ""
                await self._set_health(pooled, Health.HEALTHY)
                return pooled
            if self._clock.monotonic() >= deadline:
                raise EngineStartError(f"no vLLM endpoint is healthy: {self.troubles}")
            await asyncio.sleep(self._times.poll_s)

    async def survey(self) -> list[PooledEndpoint]:
        """Verify every endpoint once, as at the start. `trouble` says what is wrong with it."""
        for pooled in self.endpoints:
            try:
                pooled.served, pooled.trouble = await self._verify(pooled), ""
            except (EndpointLost, EndpointUnfit) as error:
                pooled.trouble = str(error)
        return self.endpoints

    async def watch(self) -> None:
        """Poll every endpoint until cancelled."""
        async with asyncio.TaskGroup() as group:
            for pooled in self.endpoints:
                group.create_task(self._watch(pooled))

    async def _watch(self, pooled: PooledEndpoint) -> None:
        while True:
            pooled.poll_now.clear()
            await self._poll(pooled)
            try:
                async with asyncio.timeout(self._times.poll_s):
                    await pooled.poll_now.wait()
            except TimeoutError:
                continue

    async def _poll(self, pooled: PooledEndpoint) -> None:
        back = pooled.health in (Health.UNKNOWN, Health.DOWN)
        try:
            served = await (self._verify(pooled) if back else self._probe(pooled))
        except (EndpointLost, EndpointUnfit) as error:
            pooled.failures += 1
            pooled.trouble = str(error)
            certain = isinstance(error, EndpointUnfit) or error.certain
            if certain or pooled.failures >= FAILED_PROBES:
                await self._change_health(pooled, Health.DOWN)
            else:
                pooled.poll_now.set()
            return
        pooled.served, pooled.failures, pooled.trouble = served, 0, ""
        await self._change_health(pooled, Health.HEALTHY)

    async def _probe(self, pooled: PooledEndpoint) -> ServedModel:
        served = await pooled.endpoint.probe()
        if served.max_model_len < self.least_context:
            raise EndpointUnfit(
                f"serves a context of {served.max_model_len} tokens, the offer says "
                f"{self.least_context}"
            )
        return served

    async def _verify(self, pooled: PooledEndpoint) -> ServedModel:
        """Probe it, check that its tokenizer is that of the checkpoint, and ask what it can."""
        served = await self._probe(pooled)
        ids = await pooled.endpoint.tokenize(served.name, TOKENIZER_PROBE)
        if ids != self._shape.codec.encode_content(TOKENIZER_PROBE):
            raise EndpointUnfit(
                f"serves {served.name[:64]} with another tokenizer than that of the settings' "
                "checkpoint"
            )
        pooled.takes_canvases = await pooled.endpoint.takes_canvases(
            served.name, self._shape.canvas_size, self._shape.vocab_size
        )
        if self.needs_canvases and not pooled.takes_canvases:
            raise EndpointUnfit("takes no given canvases, and the offer says that reads are taken")
        return served

    async def _change_health(self, pooled: PooledEndpoint, health: Health) -> None:
        before = pooled.health
        await self._set_health(pooled, health)
        if health is Health.DOWN and before is not Health.DOWN:
            self._log.error("endpoint down", count=pooled.number, error=pooled.trouble)
            if self.on_down is not None:
                self.on_down(pooled)
        elif health is Health.HEALTHY and before in (Health.UNKNOWN, Health.DOWN):
            self._log.info("endpoint up", count=pooled.number)

    async def _set_health(self, pooled: PooledEndpoint, health: Health) -> None:
        pooled.health = health
        async with self._news:
            self._news.notify_all()
