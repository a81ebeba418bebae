"""A saved answer is made again out of its evidence, and refused where it differs."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.client.gateway.exhibits import signed
from piecework.client.gateway.replies import check_reply
from piecework.commands._evidence import check_document, lines_of, read_document
from piecework_protocol.errors import EvidenceRefused
from piecework_protocol.evidence.file import evidence_json
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import keccak256
from tests.support.chain.fake_chain import DOMAIN
from tests.support.client.replies import answered, decided
from tests.support.protocol.evidence import PAYER, SIZE, Story, evidence
from tests.support.protocol.plain_evidence import reply_fault

ASKED: dict[str, Any] = {"model": "any", "messages": [{"role": "user", "content": "Tell me."}]}
STRANGER = LocalSigner(bytes(keccak256(b"another gateway")))
TALE = Story(steps=(3, 5, 2), sentences=("Once ", "upon a time", " it was."))


async def refusal(reply: Any) -> str:
    """The member that is blamed."""
    with pytest.raises(EvidenceRefused) as caught:
        await check_reply(reply)
    return caught.value.member


async def resigned(reply: dict[str, Any]) -> str:
    """The member that is blamed in an answer that its gateway signed as it is."""
    return await refusal(signed(reply, DOMAIN, PAYER))


@pytest.mark.parametrize("form", ["chat", "completions", "responses"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_of_each_format_holds(form: str, stream: bool) -> None:
    request = {
        "chat": ASKED,
        "completions": {"model": "any", "prompt": "Tell me."},
        "responses": {"model": "any", "input": "Tell me."},
    }[form]
    reply = await answered(form, {**request, "stream": stream}, [TALE], stream=stream)
    checked = await check_reply(reply)
    assert checked.gateway == PAYER.address
    assert "Once upon a time it was." in json.dumps(checked.whole)
    assert checked.jobs[0].proven.amount == checked.whole["piecework"]["cost"]


async def test_an_sdk_may_add_nulls_to_what_it_saves() -> None:
    reply = await answered("chat", ASKED, [TALE])
    reply["service_tier"] = None
    reply["choices"][0]["message"]["annotations"] = None
    await check_reply(reply)


async def test_an_answer_that_was_cut_at_a_stop_string_holds() -> None:
    asked = {**ASKED, "stop": ["a time", "Xx"]}
    reply = await answered("chat", asked, [TALE])
    assert reply["choices"][0]["message"]["content"] == "Once upon "
    checked = await check_reply(reply)
    assert len(checked.jobs[0].file.canvases) == 3
    reply["choices"][0]["message"]["content"] = "Once upon"
    assert await resigned(reply) == "choices[0].message.content"


async def test_several_choices_hold_whatever_their_order() -> None:
    reply = await answered("chat", {**ASKED, "n": 2}, [TALE, Story()])
    checked = await check_reply(reply)
    assert len(checked.jobs) == 2
    ours = reply["piecework"]
    ours["receipts"].reverse()
    await check_reply(signed(reply, DOMAIN, PAYER))
    texts = [one["message"] for one in reply["choices"]]
    reply["choices"][0]["message"], reply["choices"][1]["message"] = texts[1], texts[0]
    assert await resigned(reply) == "choices[0].message.content"


async def test_a_structured_answer_of_two_jobs_holds() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    }
    asked = {
        **ASKED,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    }
    broken = Story(steps=(1,), sentences=('{"a": 7, "b": no}',))
    mended = Story(steps=(1,), sentences=('{"a": 7, "b": 12}',))
    reply = await answered("chat", asked, [broken, mended])
    assert json.loads(reply["choices"][0]["message"]["content"]) == {"a": 7, "b": 12}
    assert reply["piecework"]["repairs"] == 1
    assert len((await check_reply(reply)).jobs) == 2
    reply["choices"][0]["message"]["content"] = '{"a": 7, "b": 13}'
    assert await resigned(reply) == "choices[0].message.content"


Change = Callable[[dict[str, Any]], object]
LIES: dict[str, tuple[str, Change]] = {
    "another text": (
        "choices[0].message.content",
        lambda r: r["choices"][0]["message"].update(content="Twice."),
    ),
    "another reason to end": (
        "choices[0].finish_reason",
        lambda r: r["choices"][0].update(finish_reason="length"),
    ),
    "a thought that nobody had": (
        "choices[0].message.reasoning",
        lambda r: r["choices"][0]["message"].update(reasoning="Hm."),
    ),
    "another count of tokens": (
        "usage.completion_tokens",
        lambda r: r["usage"].update(completion_tokens=9),
    ),
    "another cost": ("piecework.cost", lambda r: r["piecework"].update(cost=9)),
    "another price in tokens": ("usage.cost", lambda r: r["usage"].update(cost=0.5)),
    "another model": ("model", lambda r: r.update(model="gpt")),
    "another model digest": (
        "piecework.model_digest",
        lambda r: r["piecework"].update(model_digest="0x00"),
    ),
    "another worker": ("piecework.worker", lambda r: r["piecework"].update(worker="0x00")),
    "another job": ("piecework.job", lambda r: r["piecework"].update(job="0x00")),
    "another receipt": (
        "piecework.receipts[0].tokens",
        lambda r: r["piecework"]["receipts"].__setitem__(
            0, {**min(r["piecework"]["receipts"], key=lambda x: x["receipt"]), "tokens": SIZE + 1}
        ),
    ),
    "another token": (
        "piecework.token.address",
        lambda r: r["piecework"]["token"].update(address="0x" + "11" * 20),
    ),
    "another request": (
        "piecework.evidence.request",
        lambda r: r["piecework"]["evidence"]["request"]["messages"][0].update(content="Tell it."),
    ),
    "a request that is none": (
        "piecework.evidence.request",
        lambda r: r["piecework"]["evidence"].update(request=[]),
    ),
    "no jobs": ("piecework.evidence.jobs", lambda r: r["piecework"]["evidence"].update(jobs=[])),
    "another part": (
        "piecework.evidence.request",
        lambda r: r["piecework"]["evidence"]["jobs"][0].update(part=3),
    ),
    "a member that no answer has": ("more", lambda r: r.update(more=1)),
    "an answer of no known format": ("object", lambda r: r.update(object="list")),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_gateway_that_lies_is_found_although_it_signs(lie: str) -> None:
    member, tell = LIES[lie]
    one = Story(steps=(3,), sentences=("Once.",))
    reply = await answered("chat", ASKED, [one])
    tell(reply)
    assert await resigned(reply) == member


async def test_a_whole_answer_cannot_pass_as_the_end_of_a_stream() -> None:
    reply = await answered("chat", ASKED, [TALE])
    reply["choices"][0]["message"]["content"] = "Twice."
    reply["piecework"]["evidence"]["request"]["stream"] = True
    assert await resigned(reply) == "choices[0].delta"


@pytest.mark.parametrize("form", ["chat", "completions"])
async def test_the_last_chunk_of_a_stream_has_no_text_of_its_own(form: str) -> None:
    asked = {"chat": ASKED, "completions": {"model": "any", "prompt": "Tell me."}}[form]
    reply = await answered(form, {**asked, "stream": True, "n": 2}, [TALE, TALE], stream=True)
    await check_reply(reply)
    [choice] = reply["choices"]
    changed = copy.deepcopy(reply)
    changed["choices"][0].update({"chat": {"delta": {"content": "x"}}}.get(form, {"text": "x"}))
    assert (await resigned(changed)).startswith("choices[0].")
    changed = copy.deepcopy(reply)
    changed["choices"].append({**choice, "index": 1 - choice["index"]})
    assert await resigned(changed) == "choices"
    changed = copy.deepcopy(reply)
    changed["choices"] = []
    assert await resigned(changed) == "choices"


async def test_the_last_event_of_a_response_has_nothing_beside_the_response() -> None:
    asked = {"model": "any", "input": "Tell me.", "stream": True}
    reply = await answered("responses", asked, [TALE], stream=True)
    await check_reply({**reply, "more": None})
    assert await refusal({**reply, "delta": "Twice."}) == "delta"
    assert await refusal({**reply, "type": "response.incomplete"}) == "type"
    assert await refusal({**reply, "sequence_number": "Twice."}) == "sequence_number"


async def test_a_saved_answer_cannot_show_another_text_to_other_readers(tmp_path: Path) -> None:
    reply = await answered("chat", {**ASKED, "stop": " a time"}, [TALE])
    file = tmp_path / "reply.json"
    file.write_text(json.dumps(reply))
    found, document = read_document(file)
    lines = "\n".join(lines_of(await check_document(document, found)))
    assert 'the gateway ends the text before " a time"' in lines
    twice = json.dumps(reply).replace('{"', '{"choices": [], "', 1)
    assert json.loads(twice) == reply
    file.write_text(twice)
    with pytest.raises(EvidenceRefused, match="every reader"):
        read_document(file)


async def test_the_end_of_a_job_cannot_be_left_out() -> None:
    told = ("Once ", "upon a time", " in a lie.")
    for story in (
        Story(steps=(3, 5, 2), sentences=told, cancelled=True),
        Story(steps=(3, 5), sentences=told[:2], ended=False),
    ):
        reply = await answered("chat", ASKED, [story])
        assert await refusal(reply) == "piecework.evidence.jobs"
        cut = await answered("chat", {**ASKED, "stop": " a time"}, [story])
        assert (await check_reply(cut)).stop == (" a time",)


async def test_a_job_that_the_answer_is_not_made_of_is_refused() -> None:
    two = await answered("chat", {**ASKED, "n": 2}, [TALE, TALE])
    reply = await answered("chat", ASKED, [TALE])
    ours, other = reply["piecework"], two["piecework"]
    ours["evidence"]["jobs"].append(other["evidence"]["jobs"][1])
    ours["more_jobs"] = [one for one in (other, *other["more_jobs"]) if one["job"] != ours["job"]]
    assert await resigned(reply) == "piecework.evidence.jobs"


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 5), ("max_tokens", 3), ("temperature", 0.5), ("piecework", {"max_steps": 2})],
)
async def test_the_request_cannot_name_other_terms_than_the_jobs_had(name: str, value: Any) -> None:
    reply = await answered("chat", ASKED, [TALE])
    request = reply["piecework"]["evidence"]["request"]
    request[name] = {**request[name], **value} if isinstance(value, dict) else value
    assert await resigned(reply) == "piecework.evidence.request"


async def test_the_request_cannot_name_another_model_than_the_jobs_ran_on() -> None:
    reply = await answered("chat", ASKED, [TALE])
    request = reply["piecework"]["evidence"]["request"]
    for name in (reply["model"], reply["piecework"]["model_digest"]):
        request["model"] = name
        await check_reply(signed(reply, DOMAIN, PAYER))
    request["model"] = "gpt"
    assert await resigned(reply) == "piecework.evidence.request"


async def test_evidence_without_text_or_of_another_client_does_not_do() -> None:
    reply = await answered("chat", ASKED, [TALE])
    jobs = reply["piecework"]["evidence"]["jobs"]
    jobs[0]["evidence"]["content"] = None
    assert await resigned(reply) == "piecework.evidence.jobs[0]"
    jobs[0]["evidence"] = evidence_json(evidence(TALE))
    jobs[0]["evidence"]["job"]["object"]["entry"] = 0
    assert await resigned(reply) == "piecework.evidence.jobs[0].job.signature"


async def test_only_the_key_of_the_jobs_signs_the_answer() -> None:
    reply = signed(await answered("chat", ASKED, [TALE]), DOMAIN, STRANGER)
    assert await refusal(reply) == "piecework.evidence.signature"


async def test_an_answer_without_evidence_is_refused() -> None:
    reply = await answered("chat", ASKED, [TALE])
    del reply["piecework"]["evidence"]
    assert await refusal(reply) == "piecework.evidence"
    assert await refusal([]) == "piecework.evidence"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a value that is not a list or an object."""
    if not isinstance(value, dict | list):
        return [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [found for key, one in inner for found in places(one, (*path, key))]


REPLY = asyncio.run(answered("chat", ASKED, [TALE]))


@given(st.data())
async def test_no_value_of_an_answer_can_be_changed(data: st.DataObject) -> None:
    changed = _with_another_value(REPLY, data)
    assert await refusal(changed)
    assert reply_fault(changed) is not None


def _with_another_value(reply: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    path = data.draw(st.sampled_from(places(reply)))
    changed = copy.deepcopy(reply)
    holder: Any = changed
    for step in path[:-1]:
        holder = holder[step]
    old = holder[path[-1]]
    others: list[Any] = ["x", 0, 1.5, True, [], {}, str(old) + "0"]
    holder[path[-1]] = data.draw(st.sampled_from(others).filter(lambda other: other != old))
    return changed


async def test_the_second_reader_takes_what_a_gateway_answers() -> None:
    assert reply_fault(REPLY) is None
    for form, asked in (("completions", "prompt"), ("responses", "input")):
        reply = await answered(form, {"model": "any", asked: "Tell me."}, [TALE])
        assert reply_fault(reply) is None


@pytest.mark.parametrize("lie", ["another text", "another count of tokens", "another cost"])
async def test_the_second_reader_finds_a_gateway_that_lies(lie: str) -> None:
    reply = copy.deepcopy(REPLY)
    LIES[lie][1](reply)
    assert reply_fault(signed(reply, DOMAIN, PAYER)) is not None


# Decisions


QUESTIONS: dict[str, Any] = {
    "decisions": {
        "model": "any",
        "input": "It is late.",
        "questions": [
            {"type": "predicate", "instructions": "Is it late?"},
            {
                "type": "choice",
                "instructions": "Which?",
                "choices": [{"value": True}, {"value": "true"}, {"value": "no"}],
            },
            {
                "type": "score",
                "instructions": "How late?",
                "levels": [{"label": "early"}, {"label": "late"}],
            },
        ],
        "piecework": {"draws": 2},
    },
    "systemone": {
        "model": "any",
        "state": {"hour": 23},
        "questions": {
            "late": {"type": "noul", "instructions": "Is it late?"},
            "which": {"type": "choice", "criteria": {"b": "the second", "a": None, "c": ""}},
            "how": {"type": "score", "criteria": ["early", "late"]},
        },
        "piecework": {"draws": 2},
    },
}
SHARES = [
    (65_536, 0),
    (65_535, 1),
    (30_000, 35_000, 536),
    (1, 2, 65_533),
    (6_000, 59_536),
    (7_000, 58_536),
]
"""Both draws of the first question, then of the second, then of the third."""


@pytest.mark.parametrize("form", ["decisions", "systemone"])
async def test_a_decision_holds_and_the_second_reader_agrees(form: str) -> None:
    reply = await decided(form, QUESTIONS[form], SHARES)
    checked = await check_reply(reply)
    assert (checked.kind, checked.gateway) == (form, PAYER.address)
    assert [len(job.file.canvases) for job in checked.jobs] == [6]
    assert reply_fault(reply) is None
    lines = "\n".join(lines_of(await check_document(reply)))
    assert f"{form}, made of 1 job. Probabilities, usage and cost follow from them" in lines


READ_LIES: dict[str, tuple[str, Change]] = {
    "another probability": (
        "answers[0].probability",
        lambda r: r["answers"][0].update(probability=0.5),
    ),
    "another choice": ("answers[1].choice", lambda r: r["answers"][1].update(choice=True)),
    "another probability of a choice": (
        "answers[1].probabilities[2].probability",
        lambda r: r["answers"][1]["probabilities"][2].update(probability=0.9),
    ),
    "another confidence": ("answers[1].confidence", lambda r: r["answers"][1].update(confidence=1)),
    "another score": ("answers[2].score", lambda r: r["answers"][2].update(score=0.1)),
    "another name": ("answers[2].name", lambda r: r["answers"][2].update(name="late")),
    "another count of tokens": (
        "usage.output_tokens",
        lambda r: r["usage"].update(output_tokens=9),
    ),
    "another cost": ("piecework.cost", lambda r: r["piecework"].update(cost=9)),
    "another model": ("model", lambda r: r.update(model="gpt")),
    "another question": (
        "piecework.evidence.request",
        lambda r: r["piecework"]["evidence"]["request"]["questions"][0].update(instructions="?"),
    ),
    "fewer draws": (
        "piecework.evidence.request",
        lambda r: r["piecework"]["evidence"]["request"]["piecework"].update(draws=1),
    ),
    "an answer too few": ("answers", lambda r: r["answers"].pop()),
    "a member that no decision has": ("more", lambda r: r.update(more=1)),
    "an object that is not named": ("object", lambda r: r.update(object="decision")),
}


@pytest.mark.parametrize("lie", READ_LIES)
async def test_a_gateway_that_lies_about_a_decision_is_found_although_it_signs(lie: str) -> None:
    member, tell = READ_LIES[lie]
    reply = await decided("decisions", QUESTIONS["decisions"], SHARES)
    tell(reply)
    assert await resigned(reply) == member


async def test_a_decision_of_a_job_without_its_end_is_refused() -> None:
    with pytest.raises(EvidenceRefused):
        reply = await decided("decisions", QUESTIONS["decisions"], SHARES[:5])
        await check_reply(reply)


@pytest.mark.parametrize("lie", ["another probability", "another count of tokens", "another cost"])
async def test_the_second_reader_finds_a_lie_about_a_decision(lie: str) -> None:
    reply = await decided("decisions", QUESTIONS["decisions"], SHARES)
    READ_LIES[lie][1](reply)
    assert reply_fault(signed(reply, DOMAIN, PAYER)) is not None


DECISIONS = {form: asyncio.run(decided(form, QUESTIONS[form], SHARES)) for form in QUESTIONS}


@given(st.data())
async def test_no_value_of_a_decision_can_be_changed(data: st.DataObject) -> None:
    reply = DECISIONS[data.draw(st.sampled_from(sorted(DECISIONS)))]
    changed = _with_another_value(reply, data)
    assert await refusal(changed)
    assert reply_fault(changed) is not None
