"""Several vLLM endpoints as one: which are well, and which takes the next request.

An endpoint is asked every few seconds, and at once when a stream on it breaks. Nobody is found dead
by one slow answer: it takes two, or a certain sign. One that comes back is looked at as closely as
at the start.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from piecework.base.clock import Clock
from piecework_model.text.tokens import TextCodec
from piecework_node.errors import EndpointLost, EndpointUnfit, EngineStartError
from piecework_node.vllm.endpoint import VllmEndpoint
from piecework_node.vllm.wire import ServedModel

FAILED_PROBES: Final = 2
"""In a row, after which an endpoint that answers late counts as dead."""
TOKENIZER_PROBE: Final = "A fox, a lantern and a river: 12,345 größere Dinge."
"""Plain words, digits, punctuation and letters beyond ASCII: tokenizers of two models differ
somewhere in it."""


@dataclass(frozen=True, slots=True)
class PoolTimes:
    """In seconds."""

    poll_s: float = 5.0
    """Between two looks at an endpoint."""
    start_s: float = 900.0
    """For the first endpoint to be well: loading 50 GB from a slow disk takes minutes."""


class Health(enum.Enum):
    """What is known of an endpoint."""

    UNKNOWN = "never seen"
    WELL = "takes requests"
    SUSPECT = "takes no new requests until it is looked at"
    DOWN = "takes no requests"


@dataclass(slots=True)
class PooledEndpoint:
    """An endpoint with what is known of it. `number` names it in logs, which hold no URL."""

    number: int
    endpoint: VllmEndpoint
    health: Health = Health.UNKNOWN
    served: ServedModel | None = None
    load: int = 0
    """Requests that run on it."""
    failures: int = 0
    trouble: str = "it was never asked"
    poll_now: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to have it looked at now."""


class EndpointPool:
    """The endpoints. `on_down` is called when a member takes no requests any more."""

    def __init__(
        self,
        endpoints: Sequence[VllmEndpoint],
        codec: TextCodec,
        times: PoolTimes,
        clock: Clock,
        log: Any,
    ) -> None:
        self.endpoints = [PooledEndpoint(i + 1, endpoint) for i, endpoint in enumerate(endpoints)]
        self.on_down: Callable[[PooledEndpoint], None] | None = None
        self.least_context = 1
        """Tokens: an endpoint with a shorter context cannot take what is on offer."""
        self._codec, self._times, self._clock, self._log = codec, times, clock, log
        self._news = asyncio.Condition()

    @property
    def alive(self) -> bool:
        """Whether any endpoint may still take requests."""
        return any(m.health in (Health.WELL, Health.SUSPECT) for m in self.endpoints)

    @property
    def troubles(self) -> str:
        """What keeps each endpoint away, for the operator."""
        return "; ".join(f"endpoint {m.number}: {m.trouble}" for m in self.endpoints if m.trouble)

    async def acquire(self, avoid: Collection[int] = ()) -> PooledEndpoint:
        """The least loaded endpoint that is well; waits for one. Give it back with `release`.

        Members whose numbers are in `avoid` are taken only if there is no other.
        """
        async with self._news:
            await self._news.wait_for(self._well)
            chosen = min(self._well(), key=lambda m: (m.number in avoid, m.load, m.number))
            chosen.load += 1
            return chosen

    def _well(self) -> list[PooledEndpoint]:
        return [m for m in self.endpoints if m.health is Health.WELL]

    async def until(self, *, alive: bool) -> None:
        """Wait until some endpoint lives, or none does."""
        async with self._news:
            await self._news.wait_for(lambda: self.alive is alive)

    def release(self, pooled: PooledEndpoint) -> None:
        """A request on it is over."""
        pooled.load -= 1

    async def suspect(self, pooled: PooledEndpoint) -> None:
        """A request broke on it: look at it now, and give it nothing until then."""
        if pooled.health is Health.WELL:
            await self._set(pooled, Health.SUSPECT)
        pooled.poll_now.set()

    async def start(self, avoid: Collection[int] = ()) -> PooledEndpoint:
        """Wait for the first endpoint to be well; those in `avoid` are asked last.
        `EngineStartError` when one serves the wrong thing, which waiting does not mend, or none
        comes in time."""
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
                await self._set(pooled, Health.WELL)
                return pooled
            if self._clock.monotonic() >= deadline:
                raise EngineStartError(f"no vLLM endpoint is well: {self.troubles}")
            await asyncio.sleep(self._times.poll_s)

    async def survey(self) -> list[PooledEndpoint]:
        """Look at every endpoint once, as closely as at the start; `trouble` says what is wrong
        with it."""
        for pooled in self.endpoints:
            try:
                pooled.served, pooled.trouble = await self._verify(pooled), ""
            except (EndpointLost, EndpointUnfit) as error:
                pooled.trouble = str(error)
        return self.endpoints

    async def watch(self) -> None:
        """Look after every endpoint for ever."""
        async with asyncio.TaskGroup() as group:
            for pooled in self.endpoints:
                group.create_task(self._watch(pooled))

    async def _watch(self, pooled: PooledEndpoint) -> None:
        while True:
            pooled.poll_now.clear()
            await self._look(pooled)
            try:
                async with asyncio.timeout(self._times.poll_s):
                    await pooled.poll_now.wait()
            except TimeoutError:
                continue

    async def _look(self, pooled: PooledEndpoint) -> None:
        back = pooled.health in (Health.UNKNOWN, Health.DOWN)
        try:
            served = await (self._verify(pooled) if back else self._probe(pooled))
        except (EndpointLost, EndpointUnfit) as error:
            pooled.failures += 1
            pooled.trouble = str(error)
            certain = isinstance(error, EndpointUnfit) or error.certain
            if certain or pooled.failures >= FAILED_PROBES:
                await self._move(pooled, Health.DOWN)
            else:
                pooled.poll_now.set()
            return
        pooled.served, pooled.failures, pooled.trouble = served, 0, ""
        await self._move(pooled, Health.WELL)

    async def _probe(self, pooled: PooledEndpoint) -> ServedModel:
        served = await pooled.endpoint.probe()
        if served.max_model_len < self.least_context:
            raise EndpointUnfit(
                f"serves a context of {served.max_model_len} tokens, the offer says "
                f"{self.least_context}"
            )
        return served

    async def _verify(self, pooled: PooledEndpoint) -> ServedModel:
        """A glance, and whether its tokenizer is that of the checkpoint."""
        served = await self._probe(pooled)
        ids = await pooled.endpoint.tokenize(served.name, TOKENIZER_PROBE)
        if ids != self._codec.encode_content(TOKENIZER_PROBE):
            raise EndpointUnfit(
                f"serves {served.name[:64]} with another tokenizer than that of the settings' "
                "checkpoint"
            )
        return served

    async def _move(self, pooled: PooledEndpoint, health: Health) -> None:
        before = pooled.health
        await self._set(pooled, health)
        if health is Health.DOWN and before is not Health.DOWN:
            self._log.error("endpoint down", count=pooled.number, error=pooled.trouble)
            if self.on_down is not None:
                self.on_down(pooled)
        elif health is Health.WELL and before in (Health.UNKNOWN, Health.DOWN):
            self._log.info("endpoint up", count=pooled.number)

    async def _set(self, pooled: PooledEndpoint, health: Health) -> None:
        pooled.health = health
        async with self._news:
            self._news.notify_all()
