"""Audits at the index: what counts as a failure, what is only reported, and the bounds."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from piecework.chain.contracts.records import ChannelOnChain
from piecework.market.audits import AuditStore
from piecework.market.errors import Declined
from piecework.market.limits import (
    ADDRESS_AUDIT_BURST,
    AUDITS_KEPT_PER_REPORTER,
    REPORTER_AUDIT_BURST,
)
from piecework.market.offer_store import OfferStore
from piecework.market.server import IndexServer
from piecework.market.storage.database import MarketDatabase, open_database
from piecework.market.storage.schema import AUDIT_BYTES, STEPS
from piecework.market.storage.sqlite import DIALECT
from piecework_protocol import wire
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import read_evidence, write_evidence
from piecework_protocol.evidence.reports import ReportFile, check_report, read_report, write_report
from piecework_protocol.objects import AuditLevel, AuditOutcome
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Amount, ChannelId, Timestamp, keccak256, to_hex
from tests.support.chain.fake_chain import EXPLORER, FakeChain
from tests.support.client.client_side import FakeClock
from tests.support.market.databases import START, Cluster, an_offer_store
from tests.support.market.offers import offer, operator, receiver
from tests.support.market.reported import (
    FAILED,
    PASSED,
    SILENT,
    checked_report,
    invented_trace,
    report,
)
from tests.support.protocol.evidence import PAYER, Story

Http = TestClient[Any, Any]
WORKER = to_hex(operator("worker").address)
AUDITS = f"/v1/workers/{WORKER}/audits"


class AuditIndex:
    """A market with one worker, and indexes of it on one database."""

    def __init__(self, place: Path | str) -> None:
        self.chain, self.clock = FakeChain(), FakeClock()
        self.chain.register(operator("worker").address, receiver("worker"))
        self.place = place
        self.stores: list[OfferStore] = []

    async def server(self) -> TestServer:
        """One more index."""
        store = await an_offer_store(self.place, self.chain.domain, now=self.clock.now())
        self.stores.append(store)
        return TestServer(IndexServer(store, self.chain, EXPLORER, clock=self.clock).application())


@pytest.fixture
async def index(place: Path | str) -> AsyncIterator[AuditIndex]:
    running = AuditIndex(place)
    yield running
    for store in running.stores:
        await store.close()


@pytest.fixture
async def http(index: AuditIndex) -> AsyncIterator[Http]:
    async with TestClient(await index.server()) as client:
        await client.post("/v1/offers", data=wire.encode_offer(offer()))
        yield client


async def post(http: Http, file: ReportFile | bytes) -> ClientResponse:
    data = file if isinstance(file, bytes) else write_report(file)
    return await http.post("/v1/audits", data=data)


async def refused(response: ClientResponse) -> tuple[int, str]:
    return response.status, str((await response.json())["error"]["code"])


async def test_only_what_the_worker_signed_counts_as_a_failure(http: Http) -> None:
    assert (await post(http, report(AuditLevel.REPLAY, FAILED))).status == 201
    assert (await post(http, report(AuditLevel.FORCED, FAILED))).status == 201
    assert (await post(http, checked_report())).status == 201
    found = await (await http.get(AUDITS)).json()
    assert (found["failures"], found["checked"], found["reported_failures"]) == (0, 1, 2)
    assert (await post(http, invented_trace())).status == 201
    story = replace(SILENT, contradictory=True)
    assert (await post(http, report(AuditLevel.REPLAY, PASSED, story=story))).status == 201
    found = await (await http.get(AUDITS)).json()
    assert (found["failures"], found["reporters"]) == (2, 1)
    worst = [one for one in found["audits"] if one["bearing"] == "proven"]
    assert found["audits"][: len(worst)] == worst
    assert all(one["findings"] for one in worst)


async def test_each_audit_opens_to_evidence_that_a_reader_can_check(http: Http) -> None:
    file = invented_trace()
    made = await (await post(http, file)).json()
    given = await (await http.get(f"/v1/audits/{made['id']}")).read()
    assert read_evidence(given) == file.evidence
    assert check_evidence(read_evidence(given)).traced == 1
    again = await (await http.get(f"/v1/audits/{made['id']}/report")).read()
    assert read_report(again) == file
    missing = await http.get(f"/v1/audits/0x{bytes(32).hex()}")
    assert await refused(missing) == (404, "unknown_audit")


async def test_a_report_stands_beside_what_its_client_paid_on_the_chain(
    index: AuditIndex, http: Http
) -> None:
    file = report(AuditLevel.REPLAY, FAILED)
    channel = ChannelId(file.evidence.job.job.channel)
    index.chain.channels[channel] = ChannelOnChain(
        ChannelState.OPEN, Amount(9_000_000), Amount(4_250_000)
    )
    made = await (await post(http, file)).json()
    assert (made["settled"], made["reported_by"]) == (4_250_000, to_hex(PAYER.address))
    page = await (await http.get(f"/workers/{WORKER}")).text()
    assert "reported by <code>" in page and "4.25" in page
    assert "0 jobs with a proven failure" in page
    assert f"/v1/audits/{made['id']}" in page


async def test_a_proven_failure_stands_on_the_page_with_its_finding(http: Http) -> None:
    await post(http, invented_trace())
    page = await (await http.get(f"/workers/{WORKER}")).text()
    assert "1 job with a proven failure" in page
    assert "rule 12 (initial)" in page and "the worker&#x27;s signatures" not in page


async def test_what_does_not_hold_is_declined(http: Http) -> None:
    good = write_report(report())
    for data in (
        b"",
        b"{}",
        good[:-2],
        good.replace(b'"canvas":0,"evidence"', b'"canvas":1,"evidence"', 1),
    ):
        assert await refused(await post(http, data)) == (400, "evidence_refused")
    with_text = report(story=Story())
    assert await refused(await post(http, with_text)) == (400, "with_text")
    for lied in (report(AuditLevel.RULES, FAILED), report(AuditLevel.RULES, PASSED)):
        assert await refused(await post(http, lied)) == (400, "evidence_refused")


async def test_an_index_takes_no_audit_of_a_worker_that_it_has_not_seen(index: AuditIndex) -> None:
    async with TestClient(await index.server()) as client:
        assert await refused(await post(client, report())) == (404, "unknown_worker")
        assert await refused(await client.get(AUDITS)) == (404, "unknown_worker")


async def test_the_same_report_again_is_fine_and_a_later_one_takes_its_place(http: Http) -> None:
    first = report(AuditLevel.REPLAY, FAILED)
    assert (await post(http, first)).status == 201
    assert (await post(http, first)).status == 200
    assert (await post(http, report(AuditLevel.REPLAY, PASSED))).status == 201
    found = await (await http.get(AUDITS)).json()
    assert [one["outcome"] for one in found["audits"]] == ["pass"]


async def test_a_proven_failure_cannot_be_taken_back(http: Http) -> None:
    story = replace(SILENT, contradictory=True)
    assert (await post(http, report(AuditLevel.REPLAY, PASSED, story=story))).status == 201
    kinder = report(AuditLevel.REPLAY, PASSED)
    assert kinder.evidence.job == report(story=story).evidence.job
    assert await refused(await post(http, kinder)) == (409, "proven")
    assert (await (await http.get(AUDITS)).json())["failures"] == 1


async def test_one_client_cannot_fill_the_page_of_a_worker(index: AuditIndex, http: Http) -> None:
    proven = await (await post(http, invented_trace())).json()
    for seed in range(AUDITS_KEPT_PER_REPORTER + 3):
        index.clock.advance(600)
        await http.post("/v1/offers", data=wire.encode_offer(offer(now=index.clock.now())))
        made = report(AuditLevel.REPLAY, FAILED, story=replace(SILENT, seed=seed))
        assert (await post(http, made)).status == 201
    found = await (await http.get(AUDITS)).json()
    assert len(found["audits"]) == AUDITS_KEPT_PER_REPORTER
    assert found["audits"][0]["id"] == proven["id"]


async def test_audits_are_rate_limited_by_address_and_by_client(http: Http) -> None:
    for seed in range(REPORTER_AUDIT_BURST):
        assert (await post(http, report(story=replace(SILENT, seed=seed)))).status == 201
    assert await refused(await post(http, report(canvas=1))) == (429, "rate_limited")
    for _ in range(ADDRESS_AUDIT_BURST):
        last = await http.post("/v1/audits", data=b"{}")
    assert await refused(last) == (429, "rate_limited")


async def test_audits_survive_a_restart(index: AuditIndex, http: Http) -> None:
    made = await (await post(http, invented_trace())).json()
    async with TestClient(await index.server()) as again:
        found = await (await again.get(AUDITS)).json()
        assert [one["id"] for one in found["audits"]] == [made["id"]]


# --- the database


@pytest.fixture
async def databases(place: Path | str) -> AsyncIterator[list[MarketDatabase]]:
    """One database, as two instances have opened it."""
    both = [await open_database(place) for _ in range(2)]
    yield both
    for one in both:
        await one.close()


SECONDS = itertools.count()


async def put(store: AuditStore, file: ReportFile) -> bool:
    """Keep a report as the index does, each later than the one before.

    Returns whether it was there already.
    """
    now = Timestamp(START + next(SECONDS))
    data = write_report(file)
    known, _ = await store.put(check_report(file), data, PAYER.address, Amount(0), now)
    return known


async def held(database: MarketDatabase) -> tuple[int, int]:
    """How many bytes the audits have, as they are and as the index has counted."""
    ((found,),) = await database.rows(
        "SELECT coalesce(sum(length(evidence) + length(report)), 0) FROM audits"
    )
    ((counted,),) = await database.rows("SELECT value FROM meta WHERE key = $1", AUDIT_BYTES)
    return int(found), int(counted)


def of_seed(seed: int, outcome: AuditOutcome = FAILED) -> ReportFile:
    return report(AuditLevel.REPLAY, outcome, story=replace(SILENT, seed=seed))


async def test_the_bound_of_bytes_holds_over_all_indexes_of_one_database(
    databases: list[MarketDatabase],
) -> None:
    made = [of_seed(seed) for seed in range(3)]
    room = sum(len(write_report(one)) + len(write_evidence(one.evidence)) for one in made[:2])
    first, second = (AuditStore(one, room) for one in databases)
    assert not await put(first, made[0])
    assert not await put(second, made[1])
    for store in (first, second):
        with pytest.raises(Declined) as declined:
            await put(store, made[2])
        assert (declined.value.status, declined.value.code) == (503, "audits_full")
    assert await held(databases[0]) == (room, room)
    # What takes the place of as much fits.
    assert not await put(first, of_seed(1, PASSED))
    assert await held(databases[1]) == (room, room)


async def test_one_worker_holds_only_its_share_of_the_bytes(
    databases: list[MarketDatabase],
) -> None:
    made = [of_seed(seed) for seed in range(4)]
    each = max(len(write_report(one)) + len(write_evidence(one.evidence)) for one in made)
    proven = invented_trace()
    share = len(write_report(proven)) + len(write_evidence(proven.evidence)) + 2 * each
    store = AuditStore(databases[0], worker_bytes=share)
    await put(store, proven)
    for one in made:
        await put(store, one)
    found, counted = await held(databases[1])
    assert found == counted <= share
    kept = (await store.of(operator("worker").address)).audits
    assert [one.id for one in kept[1:]] == [
        keccak256(write_report(one)) for one in (made[3], made[2])
    ]
    assert kept[0].findings, "what is proven is kept before what is newer"
    full = AuditStore(databases[0], worker_bytes=share - 2 * each)
    with pytest.raises(Declined) as declined:
        await put(full, of_seed(9))
    assert declined.value.code == "audits_full"
    assert await held(databases[1]) == (found, counted), "what was there is there still"


async def test_what_is_dropped_gives_its_bytes_back(databases: list[MarketDatabase]) -> None:
    store = AuditStore(databases[0])
    await put(store, invented_trace())
    for seed in range(AUDITS_KEPT_PER_REPORTER + 2):
        await put(store, of_seed(seed))
    assert len((await store.of(operator("worker").address)).audits) == AUDITS_KEPT_PER_REPORTER
    found, counted = await held(databases[1])
    assert found == counted > 0


async def test_indexes_on_one_database_show_the_same_audits(
    databases: list[MarketDatabase],
) -> None:
    stores = [AuditStore(one) for one in databases]
    known = await asyncio.gather(*(put(store, of_seed(1)) for store in stores))
    assert sorted(known) == [False, True]
    story = replace(SILENT, contradictory=True)
    await put(stores[0], report(AuditLevel.REPLAY, PASSED, story=story))
    with pytest.raises(Declined, match="proven"):
        await put(stores[1], report(AuditLevel.REPLAY, PASSED))
    one, other = [await store.of(operator("worker").address) for store in stores]
    assert one == other and one.counts.failures == 1
    for each in one.audits:
        assert await stores[0].evidence(each.id) == await stores[1].evidence(each.id) is not None


@pytest.mark.process
async def test_a_report_to_one_instance_is_on_the_pages_of_the_other(postgres: Cluster) -> None:
    index = AuditIndex(postgres.database())
    async with TestClient(await index.server()) as here, TestClient(await index.server()) as there:
        await here.post("/v1/offers", data=wire.encode_offer(offer()))
        made = await (await post(there, invented_trace())).json()
        assert (await post(here, invented_trace())).status == 200
        for http in (here, there):
            assert (await (await http.get(AUDITS)).json())["failures"] == 1
            page = await (await http.get(f"/workers/{WORKER}")).text()
            assert f"/v1/audits/{made['id']}" in page
            given = await (await http.get(f"/v1/audits/{made['id']}")).read()
            assert read_evidence(given) == invented_trace().evidence
    for store in index.stores:
        await store.close()


OF_BEFORE = """
CREATE TABLE audits (
    id BLOB PRIMARY KEY, operator BLOB NOT NULL, job BLOB NOT NULL, canvas INTEGER NOT NULL,
    level INTEGER NOT NULL, outcome INTEGER NOT NULL, bearing TEXT NOT NULL,
    reporter BLOB NOT NULL, charged TEXT NOT NULL, settled TEXT NOT NULL, findings TEXT NOT NULL,
    received_at INTEGER NOT NULL, evidence BLOB NOT NULL, report BLOB NOT NULL,
    UNIQUE (job, canvas, level, reporter)
) STRICT;
CREATE INDEX audits_of_workers ON audits (operator, received_at);
"""
"""The table of files that were made before their schemas were counted."""


async def test_what_a_file_of_before_calls_checked_is_the_word_of_a_client(tmp_path: Path) -> None:
    """Earlier indexes called a canvas checked of which nothing was open."""
    newer, older = tmp_path / "newer.db", tmp_path / "older.db"
    database = await open_database(newer)
    await put(AuditStore(database), checked_report())
    (row,) = await database.rows("SELECT * FROM audits")
    await database.close()
    with apsw.Connection(str(older)) as file:
        file.execute(DIALECT.words(STEPS[0]) + OF_BEFORE)
        file.execute(f"INSERT INTO audits VALUES ({', '.join('?' * len(row))})", tuple(row))  # noqa: S608
    database = await open_database(older)
    counts = (await AuditStore(database).of(operator("worker").address)).counts
    assert (counts.checked, counts.reported_passes) == (0, 1)
    await database.close()


async def test_a_file_of_before_keeps_its_audits(tmp_path: Path) -> None:
    newer, older = tmp_path / "newer.db", tmp_path / "older.db"
    database = await open_database(newer)
    await put(AuditStore(database), invented_trace())
    (row,) = await database.rows("SELECT * FROM audits")
    expected = await AuditStore(database).of(operator("worker").address)
    await database.close()
    with apsw.Connection(str(older)) as file:
        file.execute(DIALECT.words(STEPS[0]) + OF_BEFORE)
        file.execute(f"INSERT INTO audits VALUES ({', '.join('?' * len(row))})", tuple(row))  # noqa: S608
    database = await open_database(older)
    assert await AuditStore(database).of(operator("worker").address) == expected
    found, counted = await held(database)
    assert found == counted > 0
    await database.close()
