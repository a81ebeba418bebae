"""Several vLLM endpoints as one: which are well, and which takes the next request.

An endpoint is asked every few seconds, and at once when a stream on it breaks. Nobody is found dead by one
slow answer: it takes two, or a certain sign. One that comes back is looked at as closely as at the start.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from piecework_model.text.tokens import TextCodec
from piecework_node.clock import Clock
from piecework_node.errors import EndpointLost, EndpointUnfit, EngineStartError
from piecework_node.vllm.endpoint import Endpoint
from piecework_node.vllm.wire import Served

FAILED_PROBES: Final = 2
"""In a row, after which an endpoint that answers late counts as dead."""
TOKENIZER_PROBE: Final = "A fox, a lantern and a river: 12,345 größere Dinge."
"""Plain words, digits, punctuation and letters beyond ASCII: tokenizers of two models differ somewhere in
it."""


@dataclass(frozen=True, slots=True)
class FleetTimes:
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
class Member:
    """An endpoint with what is known of it. `number` names it in logs, which hold no URL."""

    number: int
    endpoint: Endpoint
    health: Health = Health.UNKNOWN
    served: Served | None = None
    load: int = 0
    """Requests that run on it."""
    failures: int = 0
    trouble: str = "it was never asked"
    look: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to have it looked at now."""


class Fleet:
    """The endpoints. `on_down` is called when a member takes no requests any more."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        codec: TextCodec,
        times: FleetTimes,
        clock: Clock,
        log: Any,
    ) -> None:
        self.members = [Member(i + 1, endpoint) for i, endpoint in enumerate(endpoints)]
        self.on_down: Callable[[Member], None] | None = None
        self.least_context = 1
        """Tokens: an endpoint with a shorter context cannot take what is on offer."""
        self._codec, self._times, self._clock, self._log = codec, times, clock, log
        self._news = asyncio.Condition()

    @property
    def alive(self) -> bool:
        """Whether any endpoint may still take requests."""
        return any(m.health in (Health.WELL, Health.SUSPECT) for m in self.members)

    @property
    def troubles(self) -> str:
        """What keeps each endpoint away, for the operator."""
        return "; ".join(f"endpoint {m.number}: {m.trouble}" for m in self.members if m.trouble)

    async def acquire(self, avoid: Collection[int] = ()) -> Member:
        """The least loaded endpoint that is well; waits for one. Give it back with `release`.

        Members whose numbers are in `avoid` are taken only if there is no other.
        """
        async with self._news:
            await self._news.wait_for(self._well)
            chosen = min(self._well(), key=lambda m: (m.number in avoid, m.load, m.number))
            chosen.load += 1
            return chosen

    def _well(self) -> list[Member]:
        return [m for m in self.members if m.health is Health.WELL]

    async def until(self, *, alive: bool) -> None:
        """Wait until some endpoint lives, or none does."""
        async with self._news:
            await self._news.wait_for(lambda: self.alive is alive)

    def release(self, member: Member) -> None:
        """A request on it is over."""
        member.load -= 1

    async def suspect(self, member: Member) -> None:
        """A request broke on it: look at it now, and give it nothing until then."""
        if member.health is Health.WELL:
            await self._set(member, Health.SUSPECT)
        member.look.set()

    async def start(self, avoid: Collection[int] = ()) -> Member:
        """Wait for the first endpoint to be well; those in `avoid` are asked last. `EngineStartError` when
        one serves the wrong thing, which waiting does not mend, or none comes in time."""
        deadline = self._clock.monotonic() + self._times.start_s
        while True:
            for member in sorted(self.members, key=lambda m: m.number in avoid):
                try:
                    member.served = await self._inspect(member)
                except EndpointLost as lost:
                    member.trouble = str(lost)
                    continue
                except EndpointUnfit as unfit:
                    raise EngineStartError(f"endpoint {member.number}: {unfit}") from None
                member.trouble = ""
                await self._set(member, Health.WELL)
                return member
            if self._clock.monotonic() >= deadline:
                raise EngineStartError(f"no vLLM endpoint is well: {self.troubles}")
            await asyncio.sleep(self._times.poll_s)

    async def survey(self) -> list[Member]:
        """Look at every endpoint once, as closely as at the start; `trouble` says what is wrong with it."""
        for member in self.members:
            try:
                member.served, member.trouble = await self._inspect(member), ""
            except (EndpointLost, EndpointUnfit) as error:
                member.trouble = str(error)
        return self.members

    async def watch(self) -> None:
        """Look after every endpoint for ever."""
        async with asyncio.TaskGroup() as group:
            for member in self.members:
                group.create_task(self._watch(member))

    async def _watch(self, member: Member) -> None:
        while True:
            member.look.clear()
            await self._look(member)
            try:
                async with asyncio.timeout(self._times.poll_s):
                    await member.look.wait()
            except TimeoutError:
                continue

    async def _look(self, member: Member) -> None:
        back = member.health in (Health.UNKNOWN, Health.DOWN)
        try:
            served = await (self._inspect(member) if back else self._glance(member))
        except (EndpointLost, EndpointUnfit) as error:
            member.failures += 1
            member.trouble = str(error)
            certain = isinstance(error, EndpointUnfit) or error.certain
            if certain or member.failures >= FAILED_PROBES:
                await self._move(member, Health.DOWN)
            else:
                member.look.set()
            return
        member.served, member.failures, member.trouble = served, 0, ""
        await self._move(member, Health.WELL)

    async def _glance(self, member: Member) -> Served:
        served = await member.endpoint.probe()
        if served.max_model_len < self.least_context:
            raise EndpointUnfit(
                f"serves a context of {served.max_model_len} tokens, the offer says {self.least_context}"
            )
        return served

    async def _inspect(self, member: Member) -> Served:
        """A glance, and whether its tokenizer is that of the checkpoint."""
        served = await self._glance(member)
        ids = await member.endpoint.tokenize(served.name, TOKENIZER_PROBE)
        if ids != self._codec.encode_content(TOKENIZER_PROBE):
            raise EndpointUnfit(
                f"serves {served.name[:64]} with another tokenizer than that of the settings' checkpoint"
            )
        return served

    async def _move(self, member: Member, health: Health) -> None:
        before = member.health
        await self._set(member, health)
        if health is Health.DOWN and before is not Health.DOWN:
            self._log.error("endpoint down", count=member.number, error=member.trouble)
            if self.on_down is not None:
                self.on_down(member)
        elif health is Health.WELL and before in (Health.UNKNOWN, Health.DOWN):
            self._log.info("endpoint up", count=member.number)

    async def _set(self, member: Member, health: Health) -> None:
        member.health = health
        async with self._news:
            self._news.notify_all()
