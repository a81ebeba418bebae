"""See the worker as a client would: do the indexes show its offer, and does its address answer?

Where no index dials, a relay of the worker is asked to. Neither is trusted. What they say stops no
job. But a worker that nobody shows, or that nobody can dial, earns nothing, and its owner should
know.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final, Protocol

from piecework.base.clock import Clock
from piecework.base.dialling import Dialled
from piecework.base.http import HttpError, HttpLimits, HttpStatus, host_of, parse_json
from piecework.base.listener import bind
from piecework.base.text import one_line
from piecework_node.home import Home
from piecework_node.job_port.relays import RelayAway, ask_to_dial
from piecework_node.jobs.offers import MAX_REASON_CHARACTERS, reason_of
from piecework_node.runtime.faults import Code, FaultBoard
from piecework_node.times import now
from piecework_protocol.dialling import DialRequest, dial_domain, encode_dial
from piecework_protocol.eip712 import Domain
from piecework_protocol.objects import Endpoint, Offer
from piecework_protocol.signing import AsyncSigner
from piecework_protocol.types import Digest, to_hex
from piecework_protocol.wire import SignedOffer

SHOWN: Final = "shown by {}"
DIALLED: Final = "dialled {}"
"""The names under which an index and an address are reported to the board."""
REACH_LIMITS: Final = HttpLimits(total_s=5.0, connect_s=3.0, max_bytes=256 * 1024)
NONSENSE: Final = "it answers nonsense"
LOOK_S: Final = 600.0
RETRY_S: Final = 61.0
"""While something is wrong. An index dials for one operator once a minute."""
_WORDS: Final = {outcome.value for outcome in Dialled}


class IndexPort(Protocol):
    """What is asked of an index. `base.http.HttpReader` is one."""

    async def get_json(self, url: str, *, headers: Mapping[str, str] | None = None) -> Any:
        """Return a JSON value.

        Raises:
            HttpError: there is none.
        """
        ...

    async def post(
        self, url: str, body: bytes, *, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Send a body and return that of the answer.

        Raises:
            HttpError: there is none.
        """
        ...


@dataclass(frozen=True, slots=True)
class Sight:
    """What one index or relay says of the worker.

    Attributes:
        host: Of the index, as host[:port], or what the relay calls itself.
        shown: Whether its readers see the offer. None: it does not say.
        reached: What became of the dial, by address. Empty: it has not dialled.
        why: Why it has not dialled.
        is_relay: Whether a relay says it. It shows no offers.
    """

    host: str
    shown: bool | None = None
    reached: Mapping[str, str] | None = None
    why: str = ""
    is_relay: bool = False

    @property
    def name(self) -> str:
        """Who says it."""
        return f"relay {self.host}" if self.is_relay else self.host


class Onlooker:
    """Asks indexes how they see a worker, and a relay if none of them dials."""

    def __init__(
        self,
        indexes: Sequence[str],
        http: IndexPort,
        signer: AsyncSigner,
        market: Domain,
        clock: Clock,
        *,
        relays: Sequence[str] = (),
        ask_relay: Callable[[str, bytes], Awaitable[bytes]] = ask_to_dial,
    ) -> None:
        """market: the domain of its escrow. relays: those of the worker, in its order.

        ask_relay: sends a relay a request, and raises `RelayAway`.
        """
        self._relays, self._ask_relay = relays, ask_relay
        self._indexes, self._http = indexes, http
        self._signer, self._domain, self._clock = signer, dial_domain(market), clock

    async def look(
        self, endpoints: tuple[Endpoint, ...], pin: Digest, sequence: int | None
    ) -> tuple[Sight, ...]:
        """Ask every index, and a relay if none has dialled: the first that does.

        sequence: of the offer that they should show. None: there is none yet.
        """
        request = DialRequest(self._signer.address, endpoints, pin, now(self._clock))
        body = encode_dial(request, await self._signer.typed(self._domain, request))
        asked = {one.address for one in endpoints}
        sights = await asyncio.gather(
            *(self._ask(index.rstrip("/"), body, asked, sequence) for index in self._indexes)
        )
        for relay in self._relays:
            if any(sight.reached for sight in sights):
                break
            sights.append(await self._of_relay(relay, body, asked))
        return tuple(sights)

    async def _of_relay(self, relay: str, body: bytes, asked: set[str]) -> Sight:
        try:
            answer = parse_json(relay, await self._ask_relay(relay, body))
            if "error" in answer:
                code, message = str(answer["error"]["code"]), str(answer["error"]["message"])
                why = one_line(f"{code}: {message}", MAX_REASON_CHARACTERS)
                return Sight(relay, why=why, is_relay=True)
            reached = _outcomes(answer, asked)
        except (RelayAway, HttpError) as error:
            return Sight(relay, why=str(error), is_relay=True)
        except (KeyError, TypeError):
            return Sight(relay, why=NONSENSE, is_relay=True)
        return Sight(relay, reached=reached, is_relay=True)

    async def _ask(self, index: str, body: bytes, asked: set[str], sequence: int | None) -> Sight:
        shown = None if sequence is None else await self._is_shown(index, sequence)
        host = host_of(index)
        try:
            answer = await self._http.post(index + "/v1/dial", body)
            reached = _outcomes(parse_json(host, answer), asked)
        except HttpStatus as error:
            old = error.status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
            why = "it is of an earlier release" if old else reason_of(error)
            return Sight(host, shown, why=why)
        except (HttpError, KeyError, TypeError) as error:
            why = str(error) if isinstance(error, HttpError) else NONSENSE
            return Sight(host, shown, why=why)
        return Sight(host, shown, reached)

    async def _is_shown(self, index: str, sequence: int) -> bool | None:
        """Whether readers see this offer or a newer one. None: the index does not say."""
        place = f"{index}/v1/offers/{to_hex(self._signer.address)}"
        try:
            answer = await self._http.get_json(place)
            return bool(answer["listed"]) and int(answer["sequence"]) >= sequence
        except HttpStatus as error:
            return False if error.status == HTTPStatus.NOT_FOUND else None
        except (HttpError, KeyError, TypeError, ValueError):
            return None


def _outcomes(answer: Any, asked: set[str]) -> dict[str, str]:
    """What became of each dial. `KeyError` or `TypeError` if the answer is something else."""
    reached = {str(row["address"]): str(row["outcome"]) for row in answer["dialled"]}
    if set(reached) != asked or not set(reached.values()) <= _WORDS:
        raise KeyError("other addresses or words than were asked for")
    return reached


class ReachWatch:
    """Reports to the board how others see the worker, and says what keeps it from earning."""

    def __init__(self, board: FaultBoard) -> None:
        self._board = board
        self._sights: tuple[Sight, ...] = ()
        self._addresses: tuple[str, ...] = ()

    @property
    def shown_by(self) -> dict[str, bool | None]:
        """By index: whether its readers see the offer. None: it does not say."""
        return {sight.host: sight.shown for sight in self._indexes}

    @property
    def dialled_by(self) -> tuple[str, ...]:
        """Who has dialled, indexes by their host and relays with that word."""
        return tuple(sight.name for sight in self._sights if sight.reached)

    @property
    def _indexes(self) -> list[Sight]:
        return [sight for sight in self._sights if not sight.is_relay]

    @property
    def reached(self) -> dict[str, str]:
        """By address: "reached" if somebody reached it, else what the first one found."""
        found: dict[str, str] = {}
        for address in self._addresses:
            said = [s.reached[address] for s in self._sights if s.reached]
            if said:
                good = Dialled.REACHED.value
                found[address] = good if good in said else said[0]
        return found

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Why the worker earns nothing now, a line each. What nobody knows is not an obstacle."""
        found = []
        stopping = self._board.stopping
        if stopping is not None:
            found.append(stopping.line)
        if self._indexes and all(sight.shown is False for sight in self._indexes):
            found.append("no index shows the offer")
        reached = self.reached
        if reached and Dialled.REACHED.value not in reached.values():
            said = ", ".join(f"{address} {outcome}" for address, outcome in reached.items())
            found.append(f"no {self._asked} reaches the worker: {said}")
        return tuple(found)

    @property
    def is_good(self) -> bool:
        """Whether every index shows the offer and every address was reached."""
        good = {Dialled.REACHED.value}
        return all(s.shown is True for s in self._indexes) and (
            not self._sights or set(self.reached.values()) == good
        )

    @property
    def _asked(self) -> str:
        """Whose dials count."""
        indexes = any(sight.reached for sight in self._indexes)
        return "index" if indexes or not self.dialled_by else "relay"

    def note(self, sights: Sequence[Sight], endpoints: Sequence[Endpoint]) -> None:
        """Take what others see. One that has not dialled this time keeps its last word."""
        addresses = tuple(one.address for one in endpoints)
        if addresses == self._addresses:
            before = {sight.host: sight.reached for sight in self._sights}
            sights = [
                sight if sight.reached else replace(sight, reached=before.get(sight.host))
                for sight in sights
            ]
        gone = set(self._addresses) - set(addresses)
        self._sights, self._addresses = tuple(sights), addresses
        for address in gone:
            self._board.passed(DIALLED.format(address))
        for sight in self._indexes:
            self._judge_shown(sight)
        for address, outcome in self.reached.items():
            self._judge_reached(address, outcome)

    def _judge_shown(self, sight: Sight) -> None:
        check = SHOWN.format(sight.host)
        if sight.shown is False:
            detail = f"{sight.host} does not show this worker's offer"
            self._board.failed(check, Code.OFFER_HIDDEN, detail)
        else:
            self._board.passed(check)

    def _judge_reached(self, address: str, outcome: str) -> None:
        check = DIALLED.format(address)
        if outcome == Dialled.REACHED.value:
            self._board.passed(check)
            return
        detail = f"{address} is not reached by {', '.join(self.dialled_by)} ({outcome})"
        self._board.failed(check, Code.ADDRESS_UNREACHED, detail)


async def keep_looking(
    onlooker: Onlooker, watch: ReachWatch, current: Callable[[], SignedOffer | None]
) -> None:
    """Look at the worker's current offer now and then, until cancelled."""
    while True:
        pause_s = LOOK_S if watch.is_good else RETRY_S
        # Workers of one index must not come together.
        await asyncio.sleep(pause_s * random.uniform(1.0, 1.1))  # noqa: S311
        await look_at(onlooker, watch, current())


async def look_at(onlooker: Onlooker, watch: ReachWatch, signed: SignedOffer | None) -> None:
    """Look once at an offer. Without one there is nothing to see."""
    if signed is None:
        return
    offer: Offer = signed.offer
    sights = await onlooker.look(offer.endpoints, offer.tls_certificate, offer.sequence)
    watch.note(sights, offer.endpoints)


@asynccontextmanager
async def answering(home: Home, host: str, port: int) -> AsyncIterator[None]:
    """Answer TLS with the worker's certificate while no worker runs, and nothing else.

    Raises:
        CannotListen: the port is taken, or its address is not ours.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.certificate, home.certificate_key)
    sockets = bind(host, port)
    servers = [
        await asyncio.start_server(
            lambda _, writer: writer.transport.abort(),
            sock=sock,
            ssl=context,
            ssl_handshake_timeout=5.0,
        )
        for sock in sockets
    ]
    try:
        yield
    finally:
        for server in servers:
            server.close()
