"""Audits at the index: what counts as a failure, what is only reported, and the bounds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from piecework.chain.records import ChannelOnChain
from piecework.market.limits import (
    ADDRESS_AUDIT_BURST,
    AUDITS_KEPT_PER_REPORTER,
    REPORTER_AUDIT_BURST,
)
from piecework.market.offer_store import OfferStore
from piecework.market.server import IndexServer
from piecework_protocol import wire
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import read_evidence
from piecework_protocol.evidence.reports import ReportFile, read_report, write_report
from piecework_protocol.objects import AuditLevel
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Amount, ChannelId, to_hex
from tests.support.client_side import FakeClock
from tests.support.evidence import PAYER, Story
from tests.support.fake_chain import EXPLORER, TOKEN, FakeChain
from tests.support.offers import offer, operator, receiver
from tests.support.reported import FAILED, PASSED, SILENT, invented_trace, report

Http = TestClient[Any, Any]
WORKER = to_hex(operator("worker").address)
AUDITS = f"/v1/workers/{WORKER}/audits"


class AuditIndex:
    """A running index that knows one worker."""

    def __init__(self, folder: Path) -> None:
        self.chain, self.clock = FakeChain(), FakeClock()
        self.chain.register(operator("worker").address, receiver("worker"))
        self.file = folder / "market.db"

    def server(self) -> TestServer:
        store = OfferStore(self.file, self.chain.domain, TOKEN)
        return TestServer(IndexServer(store, self.chain, EXPLORER, clock=self.clock).application())


@pytest.fixture
def index(tmp_path: Path) -> AuditIndex:
    return AuditIndex(tmp_path)


@pytest.fixture
async def http(index: AuditIndex) -> AsyncIterator[Http]:
    async with TestClient(index.server()) as client:
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
    assert (await post(http, report(AuditLevel.RULES, PASSED))).status == 201
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
    lied = report(AuditLevel.RULES, FAILED)
    assert await refused(await post(http, lied)) == (400, "evidence_refused")


async def test_an_index_takes_no_audit_of_a_worker_that_it_has_not_seen(index: AuditIndex) -> None:
    async with TestClient(index.server()) as client:
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
    async with TestClient(index.server()) as again:
        found = await (await again.get(AUDITS)).json()
        assert [one["id"] for one in found["audits"]] == [made["id"]]
