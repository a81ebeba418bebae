"""What a client tells others of an audit: files, ERC-8004 feedback, and indexes."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from piecework.client.reports import (
    Agent,
    ReportError,
    export,
    feedback,
    publish,
    sign_report,
)
from piecework.client.wallet import Wallet
from piecework.market.server import IndexServer
from piecework_protocol import wire
from piecework_protocol.errors import EvidenceRefused
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import read_evidence
from piecework_protocol.evidence.reports import AuditFound, ReportFile, check_report, read_report
from piecework_protocol.objects import AuditLevel, AuditOutcome
from piecework_protocol.types import Bytes32, Timestamp, keccak256, to_hex
from tests.support.chain.fake_chain import EXPLORER, FakeChain
from tests.support.client.client_side import FakeClock
from tests.support.market.databases import an_offer_store
from tests.support.market.offers import offer, operator, receiver
from tests.support.market.reported import opened_canvas
from tests.support.protocol.evidence import PAYER, Story, evidence

WALLET = Wallet(PAYER, PAYER)
REGISTRY = "0x8004BAa17C55a88189AE136b182e5fdA19dE9b63"
AGENT = Agent.parse(f"eip155:8453:{REGISTRY}/22")
NOW = Timestamp(1_800_000_000)
FAILED = AuditFound(0, AuditLevel.REPLAY, AuditOutcome.FAIL)
PASSED_RULES = AuditFound(0, AuditLevel.RULES, AuditOutcome.PASS)
ACCOUNT = re.compile(r"eip155:[1-9][0-9]*:0x[0-9a-fA-F]{40}")
"""CAIP-10, as ERC-8004 writes accounts."""
MUST = {
    "agentRegistry": str,
    "agentId": int,
    "clientAddress": str,
    "createdAt": str,
    "value": int,
    "valueDecimals": int,
}
MAY = {"tag1": str, "tag2": str, "proofOfPayment": dict, "piecework": dict}


def signed(found: AuditFound = FAILED) -> ReportFile:
    return sign_report(evidence(), found, WALLET)


def test_a_report_has_no_text_and_is_signed_by_a_key_that_the_channel_knows() -> None:
    made = signed()
    assert made.evidence.content is None
    assert all(canvas.output is None for canvas in made.evidence.canvases)
    assert check_report(made).proven.amount == check_evidence(evidence()).amount


def test_the_feedback_has_the_members_of_erc_8004() -> None:
    made = feedback(signed(), AGENT, NOW, Bytes32(bytes(range(32))))
    assert made.keys() == MUST.keys() | MAY.keys()
    assert all(isinstance(made[name], kind) for name, kind in {**MUST, **MAY}.items())
    assert made["agentRegistry"] == f"eip155:8453:{REGISTRY}" and made["agentId"] == 22
    assert ACCOUNT.fullmatch(made["agentRegistry"]) and ACCOUNT.fullmatch(made["clientAddress"])
    assert made["clientAddress"].endswith(to_hex(PAYER.address))
    assert made["createdAt"] == "2027-01-15T08:00:00Z"
    assert (made["value"], made["valueDecimals"]) == (0, 0)
    assert (made["tag1"], made["tag2"]) == ("piecework-audit", "replay")
    payment = made["proofOfPayment"]
    assert payment.keys() == {"fromAddress", "toAddress", "chainId", "txHash"}
    assert all(isinstance(value, str) for value in payment.values())


def test_a_canvas_that_passed_has_the_value_100_and_no_payment_is_made_up() -> None:
    file, openings = opened_canvas(Story())
    made = feedback(sign_report(file, PASSED_RULES, WALLET, openings), AGENT, NOW, None)
    assert (made["value"], made["tag2"]) == (100, "rules")
    assert "proofOfPayment" not in made


async def test_the_files_prove_themselves_and_name_each_other(tmp_path: Path) -> None:
    report = signed()
    written = await export(tmp_path / "told", report, feedback(report, AGENT, NOW, None))
    assert [file.name for file in written.files] == [
        "evidence.json",
        "report.json",
        "feedback.json",
    ]
    found, told, about = (file.read_bytes() for file in written.files)
    assert read_evidence(found) == report.evidence and read_report(told) == report
    named = json.loads(about)["piecework"]
    assert named["evidence"]["keccak256"] == to_hex(keccak256(found))
    assert named["report"]["keccak256"] == to_hex(keccak256(told))
    assert written.feedback_hash == keccak256(about)
    assert stat.S_IMODE(written.files[0].stat().st_mode) == 0o600


async def test_without_an_agent_there_is_no_feedback_file(tmp_path: Path) -> None:
    written = await export(tmp_path, signed(), None)
    assert written.feedback_hash is None and len(written.files) == 2


async def test_an_index_takes_a_published_report_and_says_why_it_takes_another_not(
    tmp_path: Path,
) -> None:
    chain = FakeChain()
    chain.register(operator("worker").address, receiver("worker"))
    store = await an_offer_store(tmp_path / "market.db", chain.domain)
    market = IndexServer(store, chain, EXPLORER, clock=FakeClock())
    async with TestServer(market.application()) as server:
        url = str(server.make_url("/"))
        said = await publish(signed(), (url, "http://127.0.0.1:1"))
        assert said[url] == "declined: this index has seen no offer of that worker"
        assert said["http://127.0.0.1:1"].startswith("not taken: ")
        await market.accept(wire.encode_offer(offer()))
        assert await publish(signed(), (url,)) == {url: "taken: reported"}
    await store.close()


def test_what_cannot_be_reported_is_refused() -> None:
    stranger = Wallet(operator("other"), operator("other"))
    with pytest.raises(ReportError, match="another client"):
        sign_report(evidence(), FAILED, stranger)
    undecided = AuditFound(0, AuditLevel.REPLAY, AuditOutcome.NO_VERDICT)
    with pytest.raises(ReportError, match="without a verdict"):
        sign_report(evidence(), undecided, WALLET)
    with pytest.raises(EvidenceRefused, match="the rules say otherwise"):
        sign_report(evidence(Story()), AuditFound(0, AuditLevel.RULES, AuditOutcome.FAIL), WALLET)
    with pytest.raises(EvidenceRefused, match="no verdict: none of the canvas's 3 steps is opened"):
        sign_report(evidence(Story()), PASSED_RULES, WALLET)


@pytest.mark.parametrize(
    "text", ["22", "eip155:1:0x00/22", f"eip155:0:{REGISTRY}/1", f"eip155:1:{REGISTRY}/x"]
)
def test_an_agent_is_named_in_one_form(text: str) -> None:
    with pytest.raises(ReportError):
        Agent.parse(text)
