"""Answers that prove themselves, as OpenAI's own SDK gets them, and a client's evidence files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from piecework.client.evidence import known_texts
from piecework.client.gateway.exhibits import signed
from piecework.client.gateway.replies import check_reply
from piecework.client.sdk import PieceworkClient
from piecework_protocol.errors import EvidenceRefused, ProtocolViolation
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import read_evidence, write_evidence
from piecework_protocol.frames import CanvasDelivered
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.objects import Acceptance, Finish, Receipt
from piecework_protocol.signing import sign
from piecework_protocol.types import Digest, Timestamp, Uint32
from tests.support.chain.fake_chain import DOMAIN
from tests.support.client.client_side import PAYER
from tests.support.client.gateways import KEY, MODEL, scripted_market
from tests.support.protocol.plain_evidence import fault, reply_fault

USER: Any = [{"role": "user", "content": "Tell me a story."}]
EVIDENCE: Any = {"piecework": {"evidence": True}}


def verified(file: Path, expect: int = 0) -> str:
    """What `piecework verify-reply` says of a file, in a process without a home."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "piecework", "verify-reply", str(file)],
        capture_output=True,
        env={"PATH": "", "PIECEWORK_HOME": "/nowhere"},
        check=False,
    )
    assert done.returncode == expect, done.stderr.decode()
    return (done.stderr if expect else done.stdout).decode()


@pytest.mark.process
async def test_a_chat_completion_that_the_sdk_saves_proves_itself(tmp_path: Path) -> None:
    async with scripted_market(tmp_path) as market, market.sdk() as sdk:
        answer = await sdk.chat.completions.create(
            model=MODEL, messages=USER, seed=7, extra_body=EVIDENCE
        )
    file = tmp_path / "reply.json"
    file.write_text(answer.model_dump_json())
    checked = await check_reply(json.loads(file.read_text()))
    [job] = checked.jobs
    assert job.file.job.job.parameters.seed == 7
    assert job.proven.accepted_at is not None
    assert job.proven.paid == job.proven.traced == len(job.file.canvases)
    assert fault(write_evidence(job.file)) is None
    assert "it holds" in verified(file)
    text = answer.choices[0].message.content or ""
    file.write_text(answer.model_dump_json().replace(text, text + "!", 1))
    assert "piecework.evidence.signature: something in the answer was changed" in verified(file, 1)


async def test_each_format_has_the_evidence_whole_and_streamed(tmp_path: Path) -> None:
    async with scripted_market(tmp_path) as market, market.sdk() as sdk:
        shared: Any = {"model": MODEL, "extra_body": EVIDENCE}
        whole: list[Any] = [
            await sdk.completions.create(prompt="Tell me.", **shared),
            await sdk.responses.create(input="Tell me.", **shared),
        ]
        chat = await sdk.chat.completions.create(messages=USER, stream=True, **shared)
        chunks: list[Any] = [chunk async for chunk in chat]
        older = await sdk.completions.create(prompt="Tell me.", stream=True, **shared)
        chunks += [chunk async for chunk in older]
        events = await sdk.responses.create(input="Tell me.", stream=True, **shared)
        chunks += [event async for event in events]
    found = [json.loads(one.model_dump_json()) for one in (*whole, *chunks)]
    with_evidence = [one for one in found if '"evidence"' in json.dumps(one)]
    assert len(with_evidence) == 2 + 3
    kinds = [(await check_reply(one)).kind for one in with_evidence]
    assert kinds == [
        "text_completion",
        "response",
        "chat.completion.chunk",
        "text_completion",
        "response",
    ]


async def test_several_answers_and_structured_ones_prove_themselves(tmp_path: Path) -> None:
    form: Any = {
        "type": "json_schema",
        "json_schema": {
            "name": "mood",
            "schema": {
                "type": "object",
                "properties": {"mood": {"enum": ["good", "bad"]}, "why": {"type": "string"}},
                "required": ["mood", "why"],
            },
        },
    }
    async with scripted_market(tmp_path) as market, market.sdk() as sdk:
        shared: Any = {"model": MODEL, "messages": USER, "extra_body": EVIDENCE}
        twice = await sdk.chat.completions.create(n=2, **shared)
        mood = await sdk.chat.completions.create(response_format=form, **shared)
    for answer in (twice, mood):
        await check_reply(json.loads(answer.model_dump_json()))


@pytest.mark.process
async def test_a_decision_that_the_sdk_saves_proves_itself(tmp_path: Path) -> None:
    asked: Any = [
        {"type": "predicate", "instructions": "Is it late?"},
        {"type": "choice", "instructions": "Who?", "choices": [{"value": True}, {"value": "x"}]},
    ]
    more: Any = {"piecework": {"evidence": True, "draws": 2}}
    async with scripted_market(tmp_path) as market, market.sdk() as sdk:
        answer = await sdk.decisions.create(
            model=MODEL, input="It is.", questions=asked, extra_body=more
        )
    file = tmp_path / "decision.json"
    file.write_text(answer.model_dump_json())
    checked = await check_reply(json.loads(file.read_text()))
    assert checked.kind == "decisions" and checked.jobs[0].proven.finish is Finish.END_OF_TEXT
    assert reply_fault(json.loads(file.read_text())) is None
    said = verified(file)
    assert "Probabilities, usage and cost follow from them" in said and "it holds" in said


async def test_a_systemone_answer_proves_itself(tmp_path: Path) -> None:
    body = {
        "model": MODEL,
        "state": "It is.",
        "questions": {"late": {"type": "noul", "instructions": "Is it late?"}},
        **EVIDENCE,
    }
    async with scripted_market(tmp_path) as market, aiohttp.ClientSession() as http:
        headers = {"Authorization": f"Bearer {KEY}"}
        url = f"{market.url}/v1/systemone"
        async with http.post(url, json=body, headers=headers) as response:
            answer = await response.json()
    assert (await check_reply(answer)).kind == "systemone"
    assert reply_fault(answer) is None


async def test_no_name_that_a_caller_gives_a_question_hides_a_changed_answer(
    tmp_path: Path,
) -> None:
    """Some members are the gateway's own. A caller's question may have the name of one."""
    names = ("id", "created", "created_at", "call_id", "item_id", "cost_usd")
    asked = {name: {"type": "noul", "instructions": "Is it late?"} for name in names}
    body = {"model": MODEL, "state": "It is.", "questions": asked, **EVIDENCE}
    async with scripted_market(tmp_path) as market, aiohttp.ClientSession() as http:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with http.post(f"{market.url}/v1/systemone", json=body, headers=headers) as response:
            answer = await response.json()
    assert (await check_reply(answer)).kind == "systemone"
    for name in names:
        lie = json.loads(json.dumps(answer))
        lie["answers"][name]["noul"] = 0.01
        del lie["piecework"]["evidence"]["signature"]
        with pytest.raises(EvidenceRefused, match=f"answers.{name}"):
            await check_reply(signed(lie, DOMAIN, PAYER))


async def bought(market: Any) -> Any:
    """Buy one answer through the gateway, and return its job's id."""
    async with market.sdk() as sdk:
        answer = await sdk.chat.completions.create(model=MODEL, messages=USER)
    client: PieceworkClient = market.client
    return client.store.job_named(answer.model_extra["piecework"]["job"])


async def test_a_client_without_text_gets_the_answer_from_the_worker_again(tmp_path: Path) -> None:
    async with scripted_market(tmp_path) as market:
        job = await bought(market)
        paid = (await market.client.balance()).paid
        file, missing = await market.client.evidence(job)
        assert (await market.client.balance()).paid == paid
        bare, nothing = await market.client.evidence(job, with_text=False)
    assert missing.startswith("the prompt, because this client keeps no text")
    assert nothing == ""
    proven = check_evidence(read_evidence(write_evidence(file)))
    assert proven.outputs is not None and proven.content is None
    assert "".join(o.text for o in proven.outputs if isinstance(o, TextOutput))
    assert check_evidence(bare).outputs is None
    assert file.channel.authorizer == PAYER.address


async def test_what_a_worker_signed_against_itself_is_in_the_file(tmp_path: Path) -> None:
    async with scripted_market(tmp_path) as market:
        job = await bought(market)
        store, worker = market.client.store, market.worker
        [first] = store.receipts(job=job)
        accepted = store.job(job).acceptance
        assert accepted is not None
        more = accepted.prompt_tokens + 1
        receipt = first.receipt.replace(trace_root=Digest(bytes(32)))
        promise = Acceptance(job, Uint32(more), accepted.accepted_at)
        frames = (
            CanvasDelivered(receipt, sign(DOMAIN, receipt, worker.operator), b""),
            replace(accepted, prompt_tokens=more, signature=sign(DOMAIN, promise, worker.operator)),
        )
        for frame in frames:
            violation = ProtocolViolation("4.1", "two different receipts for one canvas")
            assert store.contradictions.keep(
                job, worker.operator.address, frame, violation, Timestamp(7)
            )
        file, _ = await market.client.evidence(job)
    assert check_evidence(file).contradictions == 2
    assert {type(one.second) for one in file.contradictions} == {Receipt, Acceptance}
    assert fault(write_evidence(file)) is None


async def test_a_worker_that_is_away_costs_the_evidence_its_text_alone(tmp_path: Path) -> None:
    async with scripted_market(tmp_path) as market:
        job = await bought(market)
        await market.worker.go_away()
        texts, missing = await known_texts(market.client.store, job, market.client.resume)
        file, again = await market.client.evidence(job)
    assert texts.outputs == {}
    assert "the answer, because its worker does not give it again" in missing
    assert "the answer, because its worker does not give it again" in again
    assert check_evidence(file).paid == len(file.canvases)


async def test_a_client_that_keeps_text_has_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("keep_text = true\n")
    async with scripted_market(tmp_path) as market:
        job = await bought(market)
        await market.worker.go_away()
        file, missing = await market.client.evidence(job)
    proven = check_evidence(file)
    assert missing == ""
    assert proven.content is not None and proven.outputs is not None
