"""The same request sent again: the same answer, fetched again from the worker, and paid once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp.test_utils import TestServer, make_mocked_request

from piecework.client.errors import BudgetExceeded
from piecework.client.gateway.idempotency import Idempotency
from piecework.client.gateway.server import Gateway, GatewayOptions
from piecework.client.jobs.events import CanvasText, FinishReason
from piecework.client.journal.records import JobStatus, Limits
from piecework.client.journal.requests import MAX_REQUESTS, REQUEST_LIFETIME_S
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.types import Amount, Timestamp
from tests.integration.gateway.test_gateway_access import BODY, USER, WHOLE, Door, contents, door
from tests.support.chain.fake_chain import FakeChain
from tests.support.client.client_side import ask, open_client
from tests.support.client.fake_worker import FakeWorker
from tests.support.waiting import until

KEY = "Idempotency-Key"


async def post(here: Door, key: str | None = "one", **changes: Any) -> tuple[int, bytes]:
    headers = {} if key is None else {KEY: key}
    headers |= changes.pop("headers", {})
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(here.url + "/v1/chat/completions", json={**BODY, **changes}) as response,
    ):
        return response.status, await response.read()


def code_of(answer: tuple[int, bytes]) -> tuple[int, str]:
    return answer[0], json.loads(answer[1]).get("error", {}).get("code", "")


def text_of(answer: tuple[int, bytes]) -> str:
    text: str = json.loads(answer[1])["choices"][0]["message"]["content"]
    return text


def streamed(body: bytes) -> str:
    lines = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if b"{" in line]
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_sent_again_gets_the_same_answer_and_pays_once(
    tmp_path: Path, stream: bool
) -> None:
    async with door(tmp_path) as here:
        first = await post(here, stream=stream)
        here.clock.advance(30)
        paid, canvases = here.worker.paid(), len(here.client.store.receipts())
        again = await post(here, stream=stream)
        assert first == again and first[0] == 200
        assert here.worker.paid() == paid > 0
        async with aiohttp.ClientSession() as http, http.get(here.url + "/metrics") as response:
            assert f"spent_base_units_total {float(paid)}" in await response.text()
        assert len(here.client.store.receipts()) == canvases
        assert len({s.job.salt for s in here.worker.submissions}) == 1
        (job,) = here.client.store.jobs()
        assert job.status is JobStatus.COMPLETE
        other = await post(here, "two", stream=stream)
        assert other[0] == 200 and here.worker.paid() == 2 * paid


async def test_another_body_with_the_same_key_is_refused(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        assert (await post(here))[0] == 200
        assert code_of(await post(here, max_tokens=32)) == (409, "idempotency_key_reused")
        assert len(here.worker.submissions) == 1


async def test_the_same_key_of_two_callers_is_two_keys(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        alice, bob = here.key("alice"), here.key("bob")
        for key in (alice, bob):
            headers = {"Authorization": f"Bearer {key}"}
            assert (await post(here, headers=headers))[0] == 200
        assert len(here.worker.submissions) == 2


async def test_a_running_twin_waits_and_gets_the_same_answer(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        held, entered = asyncio.Event(), asyncio.Event()

        async def gate(canvas: int) -> None:
            entered.set()
            await held.wait()

        here.worker.script.gate = gate
        first = asyncio.create_task(post(here))
        await entered.wait()
        twins = [asyncio.create_task(post(here)) for _ in range(3)]
        assert code_of(await post(here, max_tokens=32)) == (409, "idempotency_key_reused")
        held.set()
        answers = await asyncio.gather(first, *twins)
        assert len(set(answers)) == 1 and answers[0][0] == 200
        assert len({s.job.salt for s in here.worker.submissions}) == 1
        assert here.worker.paid() == sum(r.receipt.amount for r in here.client.store.receipts())


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_that_hangs_up_finds_the_whole_answer(tmp_path: Path, stream: bool) -> None:
    async with door(tmp_path) as here:
        held, entered = asyncio.Event(), asyncio.Event()

        async def gate(canvas: int) -> None:
            if canvas == 1:
                entered.set()
                await held.wait()

        here.worker.script.gate = gate
        first = asyncio.create_task(post(here, stream=stream))
        await entered.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        twin = asyncio.create_task(post(here, stream=stream))
        held.set()
        status, body = await twin
        assert status == 200
        assert (streamed(body) if stream else text_of((status, body))) == WHOLE
        assert here.worker.cancels == 0
        assert len({s.job.salt for s in here.worker.submissions}) == 1


async def test_without_a_key_a_caller_that_hangs_up_still_cancels(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        entered, held = asyncio.Event(), asyncio.Event()

        async def gate(canvas: int) -> None:
            entered.set()
            await held.wait()

        here.worker.script.gate = gate
        first = asyncio.create_task(post(here, None))
        await entered.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        # Long before the worker counts as silent.
        await until(lambda: here.worker.cancels == 1, within_s=5)
        held.set()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_a_stop_string_cut_is_fetched_again(
    tmp_path: Path, stream: bool
) -> None:
    async with door(tmp_path) as here:
        held = asyncio.Event()

        async def gate(canvas: int) -> None:
            if canvas > 1:
                await held.wait()  # so the cancel comes before the end

        here.worker.script.gate = gate
        first = await post(here, stop=[" found a"], stream=stream)
        (job,) = here.client.store.jobs()
        assert job.status is JobStatus.CANCELLED
        paid = here.worker.paid()
        again = await post(here, stop=[" found a"], stream=stream)
        assert first[0] == again[0] == 200
        assert here.worker.paid() == paid
        assert here.client.store.job(job.id).status is job.status
        if not stream:
            texts = [text_of(answer) for answer in (first, again)]
            assert texts[0] == texts[1] == WHOLE[: WHOLE.index(" found a")]


async def test_a_job_that_was_cancelled_is_fetched_as_it_ended(tmp_path: Path) -> None:
    """Nothing is missing at its end, because we ended it ourselves."""
    async with door(tmp_path) as here:
        held = asyncio.Event()

        async def gate(canvas: int) -> None:
            if canvas > 1:
                await held.wait()

        here.worker.script.gate = gate
        async with here.client.run(ask()) as run:
            async for event in run:
                if isinstance(event, CanvasText) and event.canvas == 1:
                    run.cancel()
        (job,) = here.client.store.jobs()
        again = await here.client.collect(here.client.resume(job.id))
        assert again.finished.finish is FinishReason.CANCELLED
        assert len(again.canvases) == 2
        assert here.client.store.job(job.id).status is JobStatus.CANCELLED


async def test_what_failed_before_anything_was_paid_starts_again(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        here.worker.script.refusals = [Refusal(Reason.PROMPT_REFUSED, "no")]
        assert code_of(await post(here)) == (400, "prompt_refused")
        here.worker.script.fail_at = 0
        assert (await post(here))[0] in (502, 503)
        here.worker.script.fail_at = None
        assert (await post(here))[0] == 200
        assert here.worker.paid() == sum(r.receipt.amount for r in here.client.store.receipts())


async def test_what_failed_after_a_payment_fails_again_and_starts_nothing(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        here.worker.script.fail_at = 2
        failed = code_of(await post(here))
        assert failed == (502, "engine_failed")
        paid = here.worker.paid()
        assert paid > 0
        assert code_of(await post(here)) == failed
        assert here.worker.paid() == paid
        assert len({s.job.salt for s in here.worker.submissions}) == 1


async def test_an_interrupted_job_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async with door(tmp_path, flags={"resume_attempts": 0}) as here:
        here.worker.script.drop_after = [2]
        assert code_of(await post(here)) == (502, "job_interrupted")
        assert len(here.client.store.receipts()) == 2
        answer = await post(here)
        assert text_of(answer) == WHOLE
        assert len({s.job.salt for s in here.worker.submissions}) == 1
        receipts = here.client.store.receipts()
        assert here.worker.paid() == sum(row.receipt.amount for row in receipts)
        assert await post(here) == answer


async def test_an_answer_that_the_worker_lost_is_gone_and_never_bought_twice(
    tmp_path: Path,
) -> None:
    async with door(tmp_path) as here:
        assert (await post(here))[0] == 200
        paid = here.worker.paid()
        for reason in (Reason.JOB_ENDED, Reason.EXPIRED):
            here.worker.script.refusals = [Refusal(reason, "no record of that job")]
            status, body = await post(here)
            assert code_of((status, body)) == (410, "answer_gone")
            assert here.client.store.jobs()[0].status is JobStatus.COMPLETE
        assert here.worker.paid() == paid
        assert (await post(here))[0] == 200
        assert here.worker.paid() == paid
        (job,) = here.client.store.jobs()
        assert job.status is JobStatus.COMPLETE


async def test_no_text_lies_on_disk(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        assert b"fox" in (await post(here))[1]
        kept = contents(tmp_path)
    assert kept
    assert not any(b"fox" in data or b"Tell me a story" in data for data in kept)


async def test_a_request_is_found_again_after_a_restart(tmp_path: Path) -> None:
    """Also when the gateway died while the job ran: the job goes on, and is paid once."""
    async with door(tmp_path) as here:
        held, entered = asyncio.Event(), asyncio.Event()

        async def gate(canvas: int) -> None:
            if canvas == 2:
                entered.set()
                await held.wait()

        here.worker.script.gate = gate
        first = asyncio.create_task(post(here))
        await entered.wait()
        async with served(here, tmp_path) as url:
            busy = await post(replace(here, url=url))
            assert code_of(busy) == (409, "request_in_progress")
            held.set()
            answer = await first
            assert await post(replace(here, url=url)) == answer
        assert answer[0] == 200
        assert len({s.job.salt for s in here.worker.submissions}) == 1
        receipts = here.client.store.receipts()
        assert here.worker.paid() == sum(row.receipt.amount for row in receipts)


@asynccontextmanager
async def served(here: Door, folder: Path) -> AsyncIterator[str]:
    """Another gateway on the same home."""
    assert isinstance(here.client.chain, FakeChain)
    async with (
        open_client(folder, here.client.chain, here.clock) as client,
        TestServer(
            Gateway(client, GatewayOptions(None, 8, 5.0), clock=here.clock).application()
        ) as server,
    ):
        yield str(server.make_url("")).rstrip("/")


async def test_several_parts_are_reserved_together_and_fetched_again_together(
    tmp_path: Path,
) -> None:
    async with door(tmp_path) as here:
        client, now = here.client, Timestamp(int(here.clock.wall()))
        ceiling = (await client.rank(ask(max_tokens=64))).choices[0].ceiling
        here.key("alice", Limits(per_day=Amount(3 * ceiling)))
        idempotency = Idempotency(client, here.clock, most_left=4)
        sent = make_mocked_request("POST", "/v1/chat/completions", headers={KEY: "one"})
        asked = [ask(max_tokens=64)] * 3

        async def answers() -> list[str]:
            texts = []
            async with (
                idempotency.turn(sent, "alice", b"{}") as purchase,
                purchase.parts(asked) as parts,
            ):
                held.append(client.store.budgets.used("alice", now).held)
                for request, part in zip(asked, parts, strict=True):
                    async with purchase.job(request, part) as run:
                        texts.append((await client.collect(run)).text)
            return texts

        held: list[int] = []
        assert await answers() == await answers() == [WHOLE] * 3
        assert held == [3 * ceiling, 0]
        assert len({s.job.salt for s in here.worker.submissions}) == 3
        async with idempotency.turn(sent, "alice", b"{}") as purchase:
            with pytest.raises(BudgetExceeded):
                async with purchase.parts([*asked, *asked]):
                    raise AssertionError("nothing may start")
        assert client.store.budgets.used("alice", now).held == 0


async def test_a_budget_is_charged_once(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        key = here.key("alice", Limits(per_day=Amount(1_000_000)))
        headers = {"Authorization": f"Bearer {key}"}
        for _ in range(3):
            assert (await post(here, headers=headers))[0] == 200
        now = Timestamp(int(here.clock.wall()))
        used = here.client.store.budgets.used("alice", now)
        assert (used.day, used.held) == (here.worker.paid(), 0)


async def test_after_a_day_a_key_begins_again(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        first = await post(here)
        here.clock.advance(REQUEST_LIFETIME_S)
        again = await post(here)
        assert (first[0], again[0]) == (200, 200)
        assert len({s.job.salt for s in here.worker.submissions}) == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "schlüssel"])
async def test_a_malformed_key_is_refused_by_name(tmp_path: Path, key: str) -> None:
    async with door(tmp_path) as here:
        assert code_of(await post(here, key)) == (400, "invalid_value")
        assert here.worker.submissions == []


async def test_the_sdk_sends_a_key_as_a_header(tmp_path: Path) -> None:
    async with door(tmp_path) as here, here.sdk("none-needed") as sdk:
        answers = [
            await sdk.chat.completions.create(
                model="tale-1", messages=USER, extra_headers={KEY: "one"}
            )
            for _ in range(2)
        ]
        assert answers[0] == answers[1]
        with pytest.raises(openai.ConflictError):
            await sdk.chat.completions.create(
                model="tale-1", messages=USER, seed=1, extra_headers={KEY: "one"}
            )


async def test_keys_are_bounded_and_the_bound_is_said(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        now = Timestamp(int(here.clock.wall()))
        with here.client.store._database.change("fill") as db:
            db.executemany(
                "INSERT INTO requests VALUES ('', ?, x'00', ?, '')",
                ((n.to_bytes(32, "big"), now) for n in range(MAX_REQUESTS)),
            )
        assert code_of(await post(here)) == (429, "too_many_idempotency_keys")
        assert here.worker.submissions == []
        here.clock.advance(REQUEST_LIFETIME_S)
        assert (await post(here))[0] == 200


async def test_an_unpaid_job_of_a_worker_that_is_gone_starts_again_at_another(
    tmp_path: Path,
) -> None:
    flags = {"start_timeout_s": 2, "stall_timeout_s": 1}
    async with door(tmp_path, flags=flags) as here:
        entered = asyncio.Event()

        async def gate(canvas: int) -> None:
            entered.set()
            await asyncio.Event().wait()

        here.worker.script.gate = gate
        first = asyncio.create_task(post(here))
        await entered.wait()
        await here.worker.go_away()
        assert (await first)[0] == 503
        assert isinstance(here.client.chain, FakeChain)
        async with FakeWorker(here.client.chain, here.clock, name="another") as another:
            here.clock.advance(600)
            await here.client.offers()
            answer = await post(here)
            assert text_of(answer) == WHOLE
            assert await post(here) == answer
            receipts = here.client.store.receipts()
            assert another.paid() == sum(row.receipt.amount for row in receipts)
            assert len({s.job.salt for s in another.submissions}) == 1


async def test_an_unpaid_job_that_its_worker_lost_starts_again(tmp_path: Path) -> None:
    flags = {"resume_attempts": 0}
    async with door(tmp_path, flags=flags) as here:
        here.worker.script.drop_after = [0]
        assert (await post(here))[0] >= 500
        assert not here.client.store.receipts()
        here.worker.script.refusals = [Refusal(Reason.JOB_ENDED, "no record of that job")]
        answer = await post(here)
        assert text_of(answer) == WHOLE
        lost, last = here.client.store.jobs()[0], here.client.store.jobs()[-1]
        assert (lost.id != last.id, last.status) == (True, JobStatus.COMPLETE)
        assert await post(here) == answer


async def test_two_gateways_on_one_home_buy_one_answer(tmp_path: Path) -> None:
    async with door(tmp_path) as here, served(here, tmp_path) as url:
        there = replace(here, url=url)
        held, entered = asyncio.Event(), asyncio.Event()

        async def gate(canvas: int) -> None:
            entered.set()
            await held.wait()

        here.worker.script.gate = gate
        both = [asyncio.create_task(post(at)) for at in (here, there)]
        done, (running,) = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        assert code_of(done.pop().result()) == (409, "request_in_progress")
        held.set()
        answer = await running
        assert answer[0] == 200
        assert await post(here) == await post(there) == answer
        assert len({s.job.salt for s in here.worker.submissions}) == 1
        receipts = here.client.store.receipts()
        assert here.worker.paid() == sum(row.receipt.amount for row in receipts)
