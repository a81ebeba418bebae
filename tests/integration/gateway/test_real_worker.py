"""The gateway's formats on a real worker: its own process, its engine and the bundled checkpoint.

The model writes what it likes, so nothing here looks at its words. What is held is the shape of
each answer, and its bill. Every base unit that an answer says it cost is on a receipt that the
worker signed, in the client's channel book, and in the worker's own journal.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import openai
import pytest
import pytest_asyncio

from piecework.client.journal.proofs import ProvenReceipt
from piecework.demo.market import DemoMarket, Stopwatch, open_market
from piecework.processes import ProcessGroup
from piecework_node.daemon.admin import ask_daemon
from piecework_protocol.objects import Finish, Receipt
from piecework_protocol.pricing import price, usage_of
from piecework_protocol.types import JobId, parse_hex

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SLOTS: Final = 2
ANSWER_S: Final = 240.0
STORY: Any = [{"role": "user", "content": "Write a story about a fox and a lantern."}]
CARD: Final = {
    "type": "object",
    "properties": {
        "hero": {"type": "string", "maxLength": 40},
        "animal": {"enum": ["fox", "owl"]},
        "brave": {"type": "boolean"},
    },
    "required": ["hero", "animal", "brave"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Account:
    """What was paid so far, as the client's book and the worker's journal have it."""

    promised: int
    receipts: int
    accepted: int
    canvases: int


@dataclass(slots=True)
class Served:
    """A market with a gateway in front of it, and its two accounts."""

    market: DemoMarket
    sdk: openai.AsyncOpenAI

    async def account(self) -> Account:
        """Read both sides' accounts."""
        rows = self.market.customer.client.store.channels()
        worker = (await ask_daemon(self.market.worker_home, "GET", "/status"))["earnings"]
        return Account(
            sum(row.book.cumulative for row in rows),
            sum(row.book.voucher().count for row in rows),
            worker["accepted"],
            worker["canvases"],
        )

    async def check_bill(self, before: Account, ours: dict[str, Any], jobs: int) -> list[Receipt]:
        """Hold the `piecework` object of an answer of so many jobs to what both sides keep.

        Returns:
            The signed receipts of all of its jobs.
        """
        listed = [ours, *ours.get("more_jobs", [])]
        names = [JobId(parse_hex(job["job"], 32, "job")) for job in listed]
        assert len(set(names)) == len(names) == jobs
        proofs = {name: await self.market.customer.client.proofs(name) for name in names}
        paid = [await self._job_cost(found) for found in proofs.values()]
        assert sum(paid) == ours["cost"] > 0
        assert paid[1:] == [job["cost"] for job in listed[1:]]
        assert all(cost <= job["ceiling"] for cost, job in zip(paid, listed, strict=True))
        every = [proof.row for found in proofs.values() for proof in found]
        shown = {(row.digest.hex(), int(row.receipt.amount)) for row in every}
        told = {(one["receipt"].removeprefix("0x"), one["amount"]) for one in ours["receipts"]}
        assert shown == told and len(ours["receipts"]) == len(every)
        receipts = [row.receipt for row in every]
        assert ours["denoising_steps"] == sum(receipt.steps for receipt in receipts) > 0
        assert sum(one["steps"] for one in ours["receipts"]) == ours["denoising_steps"]
        after = await self.account()
        moved = after.promised - before.promised, after.accepted - before.accepted
        assert moved == (ours["cost"], ours["cost"])
        count = after.receipts - before.receipts, after.canvases - before.canvases
        assert count == (len(every), len(every))
        return receipts

    async def _job_cost(self, proofs: Sequence[ProvenReceipt]) -> int:
        """Compute what a job cost out of its last receipt and the offer it was taken under."""
        client = self.market.customer.client
        assert proofs and all(proof.trouble == "" for proof in proofs)
        job = client.store.job(proofs[0].row.receipt.job)
        entry = job.offer.offer.models[job.submission.job.entry]
        last = proofs[-1].row.receipt
        assert price(entry, usage_of(last)) == sum(proof.row.receipt.amount for proof in proofs)
        assert last.total_steps == sum(proof.row.receipt.steps for proof in proofs)
        return int(last.total_amount)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    root: Path = tmp_path_factory.mktemp("market")
    async with ProcessGroup(root / "logs") as group:
        market = await open_market(group, root, slots=SLOTS, watch=Stopwatch())
        sdk = openai.AsyncOpenAI(
            base_url=market.gateway.ready["url"],
            api_key="not-needed",
            max_retries=0,
            timeout=ANSWER_S,
        )
        async with sdk:
            yield Served(market, sdk)


def check_usage(usage: Any, ours: dict[str, Any], receipts: Sequence[Receipt]) -> None:
    """Hold `usage` to the receipts: tokens, prompts once a job, and the cost to the unit."""
    last = {receipt.job: receipt for receipt in receipts}.values()
    assert usage.completion_tokens == sum(receipt.units for receipt in receipts)
    assert usage.prompt_tokens == sum(receipt.total_prompt_tokens for receipt in last)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert round(usage.cost * 10 ** ours["token"]["decimals"]) == ours["cost"]


def ours_of(answer: Any) -> dict[str, Any]:
    """The `piecework` object of an answer."""
    found = answer.model_extra["piecework"]
    assert isinstance(found, dict)
    return found


async def test_a_chat_is_billed_as_its_receipts_say(served: Served) -> None:
    before = await served.account()
    answer = await served.sdk.chat.completions.create(
        model="any", messages=STORY, max_tokens=80, seed=7
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    ours = ours_of(answer)
    receipts = await served.check_bill(before, ours, 1)
    check_usage(answer.usage, ours, receipts)
    assert receipts[-1].finish in (Finish.END_OF_TEXT, Finish.TOKEN_LIMIT)


async def test_a_streamed_chat_has_the_text_and_the_bill_of_a_whole_one(served: Served) -> None:
    whole = await served.sdk.chat.completions.create(
        model="any", messages=STORY, max_tokens=80, seed=8
    )
    before = await served.account()
    chunks = await served.sdk.chat.completions.create(
        model="any",
        messages=STORY,
        max_tokens=80,
        seed=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, ours, usage = "", dict[str, Any](), None
    async for chunk in chunks:
        usage = chunk.usage or usage
        ours = (chunk.model_extra or {}).get("piecework", ours)
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    check_usage(usage, ours, await served.check_bill(before, ours, 1))
    # The same seed on the same engine takes the same steps, so it costs the same.
    assert ours["cost"] == ours_of(whole)["cost"]


async def test_a_text_in_the_middle_is_a_template_of_one_job(served: Served) -> None:
    before = await served.account()
    answer = await served.sdk.completions.create(
        model="any",
        prompt="Once there was a fox who lived by a river. ",
        suffix=" Then the fox went home and slept.",
        max_tokens=16,
        seed=9,
    )
    ours = ours_of(answer)
    receipts = await served.check_bill(before, ours, 1)
    check_usage(answer.usage, ours, receipts)
    client = served.market.customer.client
    job = client.store.job(receipts[0].job)
    # The fixed texts around the hole are charged beside what the model wrote in it.
    assert 16 < receipts[-1].total_units <= job.submission.job.parameters.max_tokens
    assert answer.choices[0].finish_reason == "stop"


async def test_decisions_are_reads_that_charge_no_output_tokens(served: Served) -> None:
    before = await served.account()
    answer: Any = await served.sdk.post(
        "/decisions",
        cast_to=object,
        body={
            "model": "any",
            "input": "Once there was a brave fox. The fox found a lantern by the river.",
            "questions": [
                {"type": "predicate", "instructions": "Is the fox brave?"},
                {
                    "type": "choice",
                    "instructions": "What did the fox find?",
                    "choices": [{"value": "a lantern"}, {"value": "a map"}, {"value": "a boat"}],
                },
            ],
        },
    )
    yes, found = answer["answers"]
    assert 0 <= yes["probability"] <= 1
    assert sum(one["probability"] for one in found["probabilities"]) == pytest.approx(1, abs=1e-4)
    receipts = await served.check_bill(before, answer["piecework"], 1)
    assert [(receipt.units, receipt.steps) for receipt in receipts] == [(0, 1)] * len(receipts)
    usage = answer["usage"]
    assert (usage["output_tokens"], usage["input_tokens"]) == (0, receipts[-1].total_prompt_tokens)


async def test_a_structured_answer_holds_its_schema_and_bills_its_repairs(served: Served) -> None:
    before = await served.account()
    form: Any = {"type": "json_schema", "json_schema": {"name": "card", "schema": CARD}}
    answer = await served.sdk.chat.completions.create(
        model="any", messages=STORY, response_format=form, max_tokens=160, seed=10
    )
    card = json.loads(answer.choices[0].message.content or "")
    assert set(card) == {"hero", "animal", "brave"}
    assert card["animal"] in ("fox", "owl") and isinstance(card["brave"], bool)
    assert len(card["hero"]) <= 40
    ours = ours_of(answer)
    jobs = 1 + len(ours.get("more_jobs", []))
    assert jobs - 1 >= ours.get("repairs", 0)
    check_usage(answer.usage, ours, await served.check_bill(before, ours, jobs))


async def test_two_choices_are_two_jobs_on_one_channel(served: Served) -> None:
    before = await served.account()
    answer = await served.sdk.chat.completions.create(
        model="any", messages=STORY, max_tokens=48, seed=11, n=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    ours = ours_of(answer)
    receipts = await served.check_bill(before, ours, 2)
    check_usage(answer.usage, ours, receipts)
    jobs = [ours, *ours["more_jobs"]]
    assert len({job["channel"] for job in jobs}) == 1
    # Each choice pays for the prompt: it is a job of its own.
    last = {receipt.job: receipt for receipt in receipts}.values()
    assert len({receipt.total_prompt_tokens for receipt in last}) == 1
