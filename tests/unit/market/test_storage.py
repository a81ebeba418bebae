"""Schemas of an index's database, and several instances of an index on one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs

from piecework.base.migrations import SchemaTooNew
from piecework.market.errors import Declined, OfferStoreError
from piecework.market.limits import FOLLOW_INTERVAL_S
from piecework.market.listing import Listed, Query
from piecework.market.offer_store import OfferStore
from piecework.market.server import IndexServer
from piecework.market.storage.database import open_database
from piecework.market.storage.schema import STEPS
from piecework.market.storage.sqlite import DIALECT, SCHEMA
from piecework_protocol.types import Amount, Timestamp, Uint64, to_hex
from piecework_protocol.wire import encode_offer
from tests.support.chain.fake_chain import DOMAIN, EXPLORER, FakeChain
from tests.support.client.client_side import FakeClock
from tests.support.market.databases import START, Cluster, an_offer_store
from tests.support.market.offers import offer, operator, receiver
from tests.support.virtual_time import LoopClock, simulate
from tests.support.waiting import pass_time, until

NAMES, NOW = ("worker", "other"), Timestamp(START)
POLL_S = 0.2
"""An index answers only so many requests of one address, and the clock of its limits stands."""
Http = TestClient[Any, Any]


# --- schemas


def _of_before(file: Path) -> bytes:
    """A file as the first schema was written, with one live offer."""
    wire, me = encode_offer(offer(sequence=Uint64(7))), operator("worker").address
    with apsw.Connection(str(file)) as db:
        db.execute(DIALECT.words(STEPS[0]))
        db.execute("INSERT INTO sequences VALUES (?, 7)", (me,))
        db.execute("INSERT INTO last_offers VALUES (?, ?)", (me, wire))
        db.execute("INSERT INTO offers VALUES (?, ?, ?, '5', ?)", (me, START + 300, wire, START))
        db.execute("INSERT INTO sampled_days VALUES (1, 3)")
        db.execute("INSERT INTO meta VALUES ('settled_to', '99')")
    return wire


async def test_a_file_of_before_keeps_its_offers_and_reads_the_chain_again(tmp_path: Path) -> None:
    file = tmp_path / "market.db"
    wire = _of_before(file)
    store = await an_offer_store(file, DOMAIN)
    assert store.catalogue.count(Timestamp(START)) == 1
    assert await store.last(operator("worker").address) == wire
    assert await store.history.read_to() is None
    with pytest.raises(Declined):
        store.is_known(offer(sequence=Uint64(6)))
    await store.close()
    assert SCHEMA.backup_of(file, 1).is_file()


async def test_a_database_of_a_newer_program_is_left_alone(place: Path | str) -> None:
    database, newer = await open_database(place), len(STEPS) + 1
    async with database.change() as db:
        if isinstance(place, str):
            await db.rows("UPDATE schema_version SET version = $1", newer)
    await database.close()
    if isinstance(place, Path):
        with apsw.Connection(str(place)) as file:
            file.execute(f"PRAGMA user_version = {newer}")
    with pytest.raises((OfferStoreError, SchemaTooNew), match="newer program"):
        await open_database(place)


async def test_a_change_that_fails_is_taken_back(place: Path | str) -> None:
    database = await open_database(place)
    with pytest.raises(OfferStoreError):
        async with database.change() as db:
            await db.rows("INSERT INTO meta VALUES ('a', 'b')")
            await db.rows("INSERT INTO meta VALUES ('a', 'b')")
    assert not await database.rows("SELECT key FROM meta WHERE key = 'a'")
    await database.close()


@pytest.mark.parametrize(
    "address",
    [
        "mysql://u:secret@b/c",
        "postgresql://u:secret@127.0.0.1:1/m",
        "postgresql://u:secret@/m?host=/nowhere",
        "postgresql://u:secret@[/m",
        "postgresql://u:secret/more@127.0.0.1:1/m",
        "postgresql://u:1/secret@127.0.0.1:1/m",
        "postgresql://u:1?secret@127.0.0.1:1/m",
        "postgresql://u:secret#more@127.0.0.1:1/m",
        "postgresql://u@127.0.0.1:1/m?password=secret&sslmode=secret",
        "postgresql:secret",
    ],
)
async def test_an_address_that_leads_nowhere_is_named_without_its_password(address: str) -> None:
    with pytest.raises(OfferStoreError) as refused:
        await open_database(address)
    assert "secret" not in str(refused.value)


def test_a_row_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    file = tmp_path / "market.db"

    async def two_rounds() -> list[int]:
        # A file: time that is skipped cannot wait for a server.
        here, there = await an_offer_store(file, DOMAIN), await an_offer_store(file, DOMAIN)
        database = await open_database(file)
        async with database.change() as db:
            sql = "INSERT INTO published VALUES ($1, 1, $2, $3, '5', $4, 1)"
            unknown = operator("other").address
            await db.rows(sql, unknown, START + 300, b"of a newer program", START)
        await there.put(Listed(offer(), encode_offer(offer()), Amount(5), NOW), NOW)
        following = asyncio.create_task(here.follow(LoopClock()))
        for _ in range(2):
            await pass_time(FOLLOW_INTERVAL_S + 0.1)
        following.cancel()
        started = await an_offer_store(file, DOMAIN)
        seen = [one.catalogue.count(NOW) for one in (here, started)]
        for one in (here, there, database, started):
            await one.close()
        return seen

    with capture_logs() as logs:
        assert simulate(two_rounds()) == [1, 1]
    lines = [(line["event"], line["operator"]) for line in logs]
    assert lines == [("unreadable offer", to_hex(operator("other").address))] * 2, "once each"


# --- several instances


class Instances:
    """Two instances of an index on one database, each with a port of its own."""

    def __init__(self, chain: FakeChain, clock: FakeClock) -> None:
        self.chain, self.clock = chain, clock
        self.https: list[Http] = []
        self.stores: list[OfferStore] = []

    async def start(self, place: str) -> None:
        """Start one more."""
        store = await an_offer_store(place, DOMAIN)
        index = IndexServer(store, self.chain, EXPLORER, clock=self.clock)
        http = TestClient(TestServer(index.application()))
        await http.start_server()
        self.https.append(http)
        self.stores.append(store)

    async def post(self, at: int, sequence: int, name: str = "worker") -> int:
        """Post an offer to one of them."""
        signed = offer(name, self.clock.now(), sequence=Uint64(sequence))
        headers = {"Content-Type": "application/x-protobuf"}
        data = encode_offer(signed)
        async with self.https[at].post("/v1/offers", data=data, headers=headers) as response:
            return response.status

    async def lists(self, at: int, sequence: int, name: str = "worker") -> bool:
        """Whether one of them shows this offer."""
        async with self.https[at].get("/v1/offers") as response:
            shown = {o["operator"]: o["sequence"] for o in (await response.json())["offers"]}
        return shown.get(to_hex(operator(name).address)) == sequence


async def taken(instances: Instances, at: int, sequence: int, name: str = "worker") -> bool:
    """Whether one of them takes an offer in."""
    return await instances.post(at, sequence, name) == 201


@pytest.fixture
async def both(postgres: Cluster) -> AsyncIterator[Instances]:
    chain = FakeChain()
    for name in NAMES:
        chain.register(operator(name).address, receiver(name))
    running, place = Instances(chain, FakeClock()), postgres.database()
    for _ in range(2):
        await running.start(place)
    yield running
    for http in running.https:
        await http.close()
    for store in running.stores:
        await store.close()


@pytest.mark.process
async def test_an_offer_taken_in_by_one_instance_is_listed_by_the_other(both: Instances) -> None:
    for sequence, at in ((1, 0), (2, 1), (3, 0)):
        assert await both.post(at, sequence) == 201
        await until(partial(both.lists, 1 - at, sequence), poll_s=POLL_S)
    assert await both.post(1, 3) == 200


@pytest.mark.process
async def test_an_instance_that_has_not_heard_yet_takes_no_older_offer(both: Instances) -> None:
    assert await both.post(0, 9) == 201
    assert await both.post(1, 8) == 409
    assert await both.post(1, 9) == 200


@pytest.mark.process
async def test_a_new_instance_lists_what_is_there(both: Instances, postgres: Cluster) -> None:
    assert await both.post(0, 1, "other") == 201
    await both.start(postgres.last)
    assert await both.lists(2, 1, "other")


@pytest.mark.process
async def test_an_index_lists_while_its_database_is_away_and_goes_on_when_it_is_back(
    both: Instances, postgres: Cluster
) -> None:
    assert await both.post(0, 1) == 201
    with postgres.away():
        assert await both.post(0, 2) == 503
        assert await both.lists(0, 1)
        async with both.https[0].get("/") as response:
            assert response.status == 503

    await until(partial(taken, both, 0, 3), poll_s=POLL_S)
    await until(lambda: both.lists(1, 3), poll_s=POLL_S)


@pytest.mark.process
async def test_an_offer_after_a_crash_that_lost_some_is_listed_by_the_other_instance(
    both: Instances, postgres: Cluster
) -> None:
    for sequence in (1, 2, 3):
        assert await both.post(1, sequence) == 201
    await until(partial(both.lists, 0, 3), poll_s=POLL_S)
    database = await open_database(postgres.last)
    async with database.change() as db:
        await db.rows("DELETE FROM published")
    await database.close()
    with postgres.away():
        pass
    # It has revision 1 again, and the other instance was at 3.
    await until(partial(taken, both, 1, 1, "other"), poll_s=POLL_S)
    await until(partial(both.lists, 0, 1, "other"), poll_s=POLL_S)


@pytest.mark.process
async def test_a_role_with_another_isolation_sees_what_the_lock_waited_for(
    postgres: Cluster,
) -> None:
    place = postgres.database() + "&default_transaction_isolation=serializable"
    stores = [await an_offer_store(place, DOMAIN) for _ in range(2)]
    offers = [offer(f"worker-{number}") for number in range(8)]
    listed = [Listed(one, encode_offer(one), Amount(5), NOW) for one in offers]
    puts = (stores[at % 2].put(one, NOW) for at, one in enumerate(listed))
    assert all(await asyncio.gather(*puts))
    for store in stores:
        await store.catch_up(NOW)
        assert store.catalogue.count(NOW) == len(offers)
    for store in stores:
        await store.close()


@pytest.mark.process
async def test_revisions_are_seen_in_the_order_in_which_they_were_committed(
    both: Instances,
) -> None:
    first, second = both.stores
    for sequence in range(1, 9):
        assert await both.post(sequence % 2, sequence) == 201
        await both.stores[sequence % 2].catch_up(Timestamp(both.clock.now()))
    for store in (first, second):
        await store.catch_up(Timestamp(both.clock.now()))
        found = store.catalogue.find(Query(), Timestamp(both.clock.now()))
        assert [one.listed.signed.offer.sequence for one in found.entries] == [8]
