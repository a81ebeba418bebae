"""A worker serves other weights than it says, and the committee of the market judges it.

Every role is a process on anvil: index, worker, its modified engine, client, auditors, and two
members of the committee. The model is the bundled one.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from piecework.chain.dev.anvil import Anvil
from piecework.client.disputes.walk import DisputeStage
from piecework_protocol.disputes import ChallengeStatus
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import read_evidence
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import keccak256, to_hex
from tests.support.chain.chains import USD
from tests.support.market.dispute_market import PROVING_COST, Books, Customer, give, opened
from tests.support.system.commands import Said, piecework
from tests.support.system.worker_process import (
    OPERATOR_SECRET,
    PASSWORD,
    RECEIVER,
    write_key,
)
from tests.support.waiting import until

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.model]

OPERATOR = LocalSigner(OPERATOR_SECRET).address
SECRETS = sorted(
    (bytes(keccak256(b"member %d" % number)) for number in range(3)),
    key=lambda secret: LocalSigner(secret).address,
)
STRANGER = bytes(keccak256(b"no member"))
STAKE, TOKENS, DEPOSIT = 100 * USD, 9, 3
FEE, THRESHOLD = USD, 2
WITHIN_S = 600.0
POLL_S = 0.5
PLACE = ("--canvas", "0", "--step", "1")


@dataclass(frozen=True, slots=True)
class Committee:
    """The members' keys, and what they type."""

    file: Path
    root: Path

    @classmethod
    def make(cls, file: Path, root: Path) -> Committee:
        for number, secret in enumerate((*SECRETS, STRANGER)):
            write_key(root / f"key-{number}.json", secret)
        return cls(file, root)

    def verdict(self, member: int) -> Path:
        return self.root / f"verdict-{member}.json"

    async def judges(self, member: int, evidence: Path, step: int = 1) -> Said:
        place = ("--canvas", "0", "--step", str(step))
        out = ("--out", str(self.verdict(member)), "--device", "cpu", "--json")
        return await self._types(member, "judge", str(evidence), *place, *out)

    async def submits(self, sender: int, *members: int) -> Said:
        files = [str(self.verdict(member)) for member in members]
        return await self._types(sender, "submit", *files, "--json")

    async def _types(self, member: int, verb: str, *arguments: str) -> Said:
        key = ("--key-file", str(self.root / f"key-{member}.json"))
        return await piecework(
            *("committee", verb, *arguments, "--deployment", str(self.file), *key),
            environment={"PIECEWORK_PASSWORD": PASSWORD},
            within_s=WITHIN_S,
        )


async def test_a_worker_with_other_weights_is_found_by_an_audit_and_judged_by_the_committee(
    anvil: Anvil, tmp_path: Path
) -> None:
    members = [to_hex(LocalSigner(secret).address) for secret in SECRETS]
    terms: dict[str, Any] = {"committee": members, "threshold": THRESHOLD, "verdict_fee": FEE}
    async with opened(
        anvil, tmp_path, tokens=TOKENS, deposit=DEPOSIT, pace_s=0, terms=terms
    ) as market:
        customer, books = market.customer, market.books
        settings = customer.home / "config.toml"
        settings.write_text(f"{settings.read_text()}\nkeep_text = true\n")
        committee = Committee.make(market.file, tmp_path)
        await market.worker.start_cheating("other-weights", within_s=WITHIN_S)
        asked = ("run", "Write a story about a fox and a lantern.", "--max-tokens", "32")
        done = await customer.types(*asked, "--seed", "11")
        evidence = await customer.evidence(done["job"], tmp_path / "evidence.json")
        await _audit_finds_it(customer, done["job"])
        too_early = await committee.judges(0, evidence)
        assert too_early.code == 3 and "is not before the committee" in too_early.err
        said = await _walk(customer, committee, books, evidence, members)
        assert await market.worker.drain() == 0, market.worker.log_tail()
        assert f"{DisputeStage.DECIDED.value}: the committee judged: guilty" in said.out
        await _hold_the_books(books, customer)


async def _audit_finds_it(customer: Customer, job: str) -> None:
    said = await customer.says(
        "audit", job, "--canvas", "0", "--device", "cpu", "--json", within_s=WITHIN_S
    )
    assert said.code == 1, (said.out, said.err)
    kept = Path(json.loads(said.out)["evidence"])
    assert kept.parent == customer.home
    assert check_evidence(read_evidence(await asyncio.to_thread(kept.read_bytes))).traced


async def _walk(
    customer: Customer, committee: Committee, books: Books, evidence: Path, members: list[str]
) -> Said:
    """The client's one command, from the challenge to the verdict of two members."""
    about = (*PLACE, "--escalate", "--wait", "--poll-seconds", "1", "--yes")

    async def escalated() -> bool:
        found = await books.challenges(OPERATOR)
        states = [(await books.disputes.state(one.id)).status for one in found]
        return ChallengeStatus.ESCALATED in states

    async with asyncio.TaskGroup() as tasks:
        walk = tasks.create_task(
            customer.says("dispute", str(evidence), *about, within_s=3 * WITHIN_S)
        )
        await until(escalated, within_s=WITHIN_S, poll_s=POLL_S)
        first, second, stranger = await asyncio.gather(
            *(committee.judges(member, evidence) for member in (0, 2, 3))
        )
        assert stranger.code == 3 and "is not in the committee" in stranger.err
        assert first.json()["guilty"] and second.json()["guilty"]
        assert first.json()["leaf_root"] == second.json()["leaf_root"]
        committee.verdict(1).write_text("something else")
        taken = await committee.judges(1, evidence)
        assert taken.code == 1 and f"{committee.verdict(1).name} exists already" in taken.line()
        assert committee.verdict(1).read_text() == "something else"
        other = await committee.judges(1, evidence, step=0)
        assert other.code == 3 and "is not before the committee" in other.err
        await give(committee.file, members[0], native="1", tokens="0")
        alone = await committee.submits(0, 0, 0)
        assert "1 members agree, and 2 are needed" in alone.line()
        (await committee.submits(0, 0, 2)).json()
        return await walk


async def _hold_the_books(books: Books, customer: Customer) -> None:
    """Every party's money, to the unit."""
    reader, deployment, payer = books.reader, books.deployment, customer.payer
    opened = await books.challenges(OPERATOR)
    assert [one.challenge.leaf for one in opened] == [0, 2]
    slashed = max(STAKE // 10, 1000 * opened[1].challenge.amount)
    reward = min(slashed // 10, 20 * PROVING_COST)
    registered = await reader.worker(OPERATOR)
    assert registered is not None and registered.stake == STAKE - slashed
    token = deployment.token
    # The second bond came back, and the reward with it.
    assert await reader.token_balance(token, payer) == (TOKENS - DEPOSIT) * USD + reward
    for member, fee in zip(SECRETS, (FEE, 0, FEE), strict=True):
        waiting = await books.disputes.credits_of(LocalSigner(member).address)
        assert waiting.tokens == fee
    held = await reader.token_balance(token, deployment.registry)
    assert held == STAKE - reward - 2 * FEE
    assert deployment.disputes_contract is not None
    assert await reader.token_balance(token, deployment.disputes_contract) == 2 * FEE
    await books.hold_the_bonds(OPERATOR, payer)
    await books.hold_the_trade(customer, RECEIVER, DEPOSIT * USD)
