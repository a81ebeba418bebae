"""The gateway as OpenAI's own Python SDK sees it, with a fake worker behind it over real gRPC."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from piecework.client.gateway.server import Gateway, GatewayOptions
from piecework.client.sdk import PieceworkClient
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.objects import Service
from piecework_protocol.service import best_effort_parameters
from piecework_protocol.types import Amount, Uint32
from tests.support.chain.fake_chain import FakeChain
from tests.support.client.client_side import MONEY, PAYER, FakeClock, open_client
from tests.support.client.fake_worker import STEPS, STORY, FakeWorker, Lie, model_offer
from tests.support.waiting import until

WHOLE = " ".join(STORY)
USER: Any = [{"role": "user", "content": "Tell me a story."}]
KEY = "a-key-for-tests"


@dataclass
class Setting:
    """A running gateway and everything behind it."""

    url: str
    worker: FakeWorker
    chain: FakeChain
    client: PieceworkClient

    def sdk(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url + "/v1", api_key=KEY, max_retries=0, **options)


async def serve(client: PieceworkClient, **options: Any) -> tuple[web.AppRunner, str]:
    """Start a gateway on a free port."""
    settings: dict[str, Any] = {"api_key": KEY, "max_concurrent": 8, "heartbeat_s": 5.0, **options}
    gateway = Gateway(client, GatewayOptions(**settings))
    runner = web.AppRunner(gateway.application(), handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


@asynccontextmanager
async def best_effort_market(folder: Path, **options: Any) -> AsyncIterator[Setting]:
    """A gateway whose only worker serves without seed and trace."""
    chain, clock = FakeChain(), FakeClock()
    chain.deposit(PAYER.address, MONEY)
    loose = model_offer().replace(
        service=Service.BEST_EFFORT, max_steps=Uint32(0), price_per_thousand_steps=Amount(0)
    )
    async with (
        FakeWorker(chain, clock, models=(loose,)) as worker,
        open_client(folder, chain, clock) as client,
    ):
        runner, url = await serve(client, **options)
        try:
            yield Setting(url, worker, chain, client)
        finally:
            await runner.cleanup()


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    chain, clock = FakeChain(), FakeClock()
    chain.deposit(PAYER.address, MONEY)
    async with FakeWorker(chain, clock) as worker, open_client(tmp_path, chain, clock) as client:
        runner, url = await serve(client)
        try:
            yield Setting(url, worker, chain, client)
        finally:
            await runner.cleanup()


# --- answers


async def test_a_whole_answer_carries_text_usage_and_receipts(setting: Setting) -> None:
    async with setting.sdk() as sdk:
        answer = await sdk.chat.completions.create(model="tale-1", messages=USER, seed=7)
    choice = answer.choices[0]
    assert choice.message.content == WHOLE
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(STORY)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(STORY)
    ours = answer.model_extra["piecework"] if answer.model_extra else {}
    assert ours["cost"] == setting.worker.paid() == sum(r["amount"] for r in ours["receipts"])
    assert ours["denoising_steps"] == STEPS * len(ours["receipts"])
    assert ours["acknowledged"]
    assert (ours["token"]["symbol"], ours["token"]["decimals"]) == ("tUSDC", 6)
    assert setting.worker.submissions[0].job.parameters.seed == 7


async def test_best_effort_is_paid_for_only_when_it_is_allowed_and_says_so(tmp_path: Path) -> None:
    allowed: Any = {"piecework": {"best_effort": True}}
    async with best_effort_market(tmp_path) as setting, setting.sdk() as sdk:
        with pytest.raises(openai.BadRequestError, match="best effort") as caught:
            await sdk.chat.completions.create(model="tale-1", messages=USER)
        assert caught.value.param == "piecework.best_effort"
        for unmet in ({"seed": 7}, {"temperature": 0.4}):
            with pytest.raises(openai.BadRequestError, match="cannot honour"):
                await sdk.chat.completions.create(
                    model="tale-1",
                    messages=USER,
                    extra_body=allowed,
                    **unmet,
                )
        assert setting.worker.submissions == []
        answer = await sdk.chat.completions.create(
            model="tale-1", messages=USER, extra_body=allowed
        )
        models = [model async for model in sdk.models.list()]
        job = setting.worker.submissions[0].job
        assert setting.worker.paid() > 0
    assert answer.choices[0].message.content == WHOLE
    ours = answer.model_extra["piecework"] if answer.model_extra else {}
    assert (ours["service"], ours["denoising_steps"]) == ("best_effort", 0)
    assert (models[0].model_extra or {})["piecework"]["services"] == ["best_effort"]
    assert job.parameters == best_effort_parameters(job.parameters.max_tokens)


async def test_a_gateway_may_allow_best_effort_for_those_who_do_not_say(tmp_path: Path) -> None:
    async with best_effort_market(tmp_path, best_effort=True) as setting, setting.sdk() as sdk:
        answer = await sdk.chat.completions.create(model="tale-1", messages=USER)
        assert answer.choices[0].message.content == WHOLE
        declined: Any = {"piecework": {"best_effort": False}}
        with pytest.raises(openai.BadRequestError, match="best effort"):
            await sdk.chat.completions.create(model="tale-1", messages=USER, extra_body=declined)


async def test_a_stream_has_one_chunk_for_each_canvas_and_ends_with_usage(setting: Setting) -> None:
    async with setting.sdk() as sdk:
        stream = await sdk.chat.completions.create(
            model="tale-1", messages=USER, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    texts = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert len(texts) == 4
    assert "".join(texts) == WHOLE
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].model_extra is not None
    assert len(chunks[-2].model_extra["piecework"]["receipts"]) == 4
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(STORY)
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)


async def test_a_token_limit_is_reported_as_length(setting: Setting) -> None:
    async with setting.sdk() as sdk:
        answer = await sdk.chat.completions.create(
            model="tale-1", messages=USER, max_completion_tokens=9
        )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_cuts_the_text_and_cancels_the_job(
    setting: Setting, stream: bool
) -> None:
    held = asyncio.Event()

    async def gate(canvas: int) -> None:
        if canvas == 3:
            await held.wait()

    setting.worker.script.gate = gate
    # " lit the lantern" straddles the second and third canvas.
    arguments: Any = {
        "model": "tale-1",
        "messages": USER,
        "stop": [" lit the lantern"],
        "stream": stream,
    }
    async with setting.sdk() as sdk:
        answer = await sdk.chat.completions.create(**arguments)
        if stream:
            chunks = [chunk async for chunk in answer]
            text = "".join(c.choices[0].delta.content or "" for c in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert text == WHOLE[: WHOLE.index(" lit the lantern")]
    assert reason == "stop"
    assert setting.worker.cancels == 1
    assert not next(iter(setting.worker.books.values())).unpaid


async def test_parameters_are_signed_into_the_job(setting: Setting) -> None:
    async with setting.sdk() as sdk:
        await sdk.chat.completions.create(
            model="tale-1",
            messages=USER,
            temperature=1.25,
            max_tokens=20,
            extra_body={"piecework": {"max_steps": 12, "entropy_bound": 0.25}},
        )
    parameters = setting.worker.submissions[0].job.parameters
    assert (parameters.temperature_start, parameters.temperature_end) == (1_000_000, 500_000)
    assert (parameters.max_tokens, parameters.max_steps, parameters.entropy_bound) == (
        20,
        12,
        250_000,
    )


async def test_models_are_those_of_verified_offers(setting: Setting) -> None:
    async with setting.sdk() as sdk:
        models = (await sdk.models.list()).data
        one = await sdk.models.retrieve("tale-1")
        with pytest.raises(openai.NotFoundError):
            await sdk.models.retrieve("epic-9")
    assert [m.id for m in models] == ["tale-1"]
    assert one.model_extra is not None
    assert one.model_extra["piecework"]["workers"] == 1


# --- refusals


IGNORED: Any = [
    ("top_p", 0.5),
    ("frequency_penalty", 0.5),
    ("logit_bias", {"1": 5}),
    ("logprobs", True),
    ("service_tier", "flex"),
]


@pytest.mark.parametrize(("field", "value"), IGNORED)
async def test_what_cannot_be_honoured_is_ignored_by_name(
    setting: Setting, field: str, value: Any
) -> None:
    async with setting.sdk() as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(
            model="tale-1", messages=USER, **{field: value}
        )
        answer = raw.parse()
    assert answer.choices[0].message.content == WHOLE
    assert raw.headers["x-piecework-ignored"] == field
    assert (answer.model_extra or {})["piecework"]["ignored"] == [field]


@pytest.mark.parametrize(("field", "value"), IGNORED)
async def test_a_strict_gateway_refuses_what_cannot_be_honoured(
    setting: Setting, field: str, value: Any
) -> None:
    runner, url = await serve(setting.client, strict_parameters=True)
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0) as sdk:
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.chat.completions.create(model="tale-1", messages=USER, **{field: value})
    await runner.cleanup()
    assert caught.value.param == field
    assert caught.value.code == "unsupported_parameter"
    assert setting.worker.submissions == []


async def test_an_empty_wallet_is_402(tmp_path: Path) -> None:
    chain, clock = FakeChain(), FakeClock()
    async with FakeWorker(chain, clock), open_client(tmp_path, chain, clock) as client:
        runner, url = await serve(client)
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0) as sdk:
            with pytest.raises(openai.APIStatusError) as caught:
                await sdk.chat.completions.create(model="tale-1", messages=USER)
        await runner.cleanup()
    assert caught.value.status_code == 402
    assert caught.value.code == "insufficient_funds"


async def test_workers_that_stay_busy_are_503_with_the_time_to_wait(setting: Setting) -> None:
    setting.worker.script.refusals = [Refusal(Reason.BUSY, "full", retry_after_s=4.2)]
    runner, url = await serve(setting.client, wait_s=1)
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0) as sdk:
        with pytest.raises(openai.InternalServerError) as caught:
            await sdk.chat.completions.create(model="tale-1", messages=USER)
    await runner.cleanup()
    assert caught.value.status_code == 503
    assert caught.value.response.headers["Retry-After"] == "5"
    assert caught.value.code == "workers_busy"


async def test_a_request_waits_while_all_workers_are_busy(setting: Setting) -> None:
    busy = Refusal(Reason.BUSY, "full", retry_after_s=0.05)
    setting.worker.script.refusals = [busy] * 12
    async with setting.sdk() as sdk:
        answers = await asyncio.gather(
            *(sdk.chat.completions.create(model="tale-1", messages=USER) for _ in range(20))
        )
    assert [answer.choices[0].message.content for answer in answers] == [WHOLE] * 20


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"max_tokens": 4096}, "max_tokens_too_large", "max_tokens"),
        ({"extra_body": {"piecework": {"max_steps": 50}}}, None, "piecework.max_steps"),
        ({"extra_body": {"piecework": {"max_price": 1}}}, None, "piecework.max_price"),
    ],
)
async def test_what_no_worker_can_give_is_400_and_named(
    setting: Setting, fields: Any, code: str | None, param: str
) -> None:
    async with setting.sdk() as sdk:
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.chat.completions.create(model="tale-1", messages=USER, **fields)
    assert caught.value.param == param
    assert code in (None, caught.value.code)


@pytest.mark.parametrize(
    ("refusal", "code", "param"),
    [
        (Refusal(Reason.PROMPT_REFUSED, "roles must alternate"), "prompt_refused", "messages"),
        (Refusal(Reason.PROMPT_TOO_LONG, "long"), "context_length_exceeded", "messages"),
        (
            Refusal(Reason.BAD_PARAMETERS, "temperature_end is 0, outside 1 to 2"),
            "bad_parameters",
            "temperature",
        ),
    ],
    ids=lambda value: getattr(getattr(value, "reason", None), "name", str(value)),
)
async def test_a_refusal_of_the_request_itself_is_400_and_named(
    setting: Setting, refusal: Refusal, code: str, param: str
) -> None:
    setting.worker.script.refusals = [refusal]
    async with setting.sdk() as sdk:
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.chat.completions.create(model="tale-1", messages=USER, max_tokens=64)
    assert (caught.value.code, caught.value.param) == (code, param)


async def test_nobody_there_is_503_and_an_unknown_model_404(
    setting: Setting, tmp_path: Path
) -> None:
    async with setting.sdk() as sdk:
        with pytest.raises(openai.NotFoundError):
            await sdk.chat.completions.create(model="epic-9", messages=USER)
    chain, clock = FakeChain(), FakeClock()
    (tmp_path / "other").mkdir()
    async with open_client(tmp_path / "other", chain, clock) as client:
        runner, url = await serve(client)
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0) as sdk:
            with pytest.raises(openai.InternalServerError) as caught:
                await sdk.chat.completions.create(model="any", messages=USER)
        await runner.cleanup()
    assert caught.value.status_code == 503


async def test_a_wrong_key_is_401(setting: Setting) -> None:
    async with openai.AsyncOpenAI(
        base_url=setting.url + "/v1", api_key="wrong", max_retries=0
    ) as sdk:
        with pytest.raises(openai.AuthenticationError):
            await sdk.chat.completions.create(model="tale-1", messages=USER)


async def test_more_requests_than_allowed_are_told_to_wait(setting: Setting) -> None:
    held, entered = asyncio.Event(), asyncio.Event()

    async def gate(canvas: int) -> None:
        entered.set()
        await held.wait()

    setting.worker.script.gate = gate
    runner, url = await serve(setting.client, max_concurrent=1, max_waiting=0)
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0) as sdk:
        first = asyncio.create_task(sdk.chat.completions.create(model="tale-1", messages=USER))
        await entered.wait()
        with pytest.raises(openai.RateLimitError):
            await sdk.chat.completions.create(model="tale-1", messages=USER)
        held.set()
        assert (await first).choices[0].message.content == WHOLE
    await runner.cleanup()


# --- failures


@pytest.mark.parametrize(
    "lie", [Lie.HIGHER_AMOUNT, Lie.RECEIPT_BY_ANOTHER_KEY], ids=lambda lie: lie.name
)
async def test_a_lying_worker_fails_the_stream_with_the_clause(setting: Setting, lie: Lie) -> None:
    setting.worker.script.lie = lie
    texts = []
    async with setting.sdk() as sdk:
        stream = await sdk.chat.completions.create(model="tale-1", messages=USER, stream=True)
        with pytest.raises(openai.APIError, match=f"clause {lie.clause}"):
            async for chunk in stream:
                texts.append(chunk.choices[0].delta.content or "")
    assert "".join(texts) == "Once upon a time a fox found a"
    # The voucher of the honest canvas is on its way when the lie is found.
    await until(lambda: next(iter(setting.worker.books.values())).accumulator.count == 1)


async def test_a_lie_without_a_stream_is_a_502_that_the_sdk_does_not_repeat(
    setting: Setting,
) -> None:
    setting.worker.script.lie = Lie.OTHER_OUTPUT
    async with openai.AsyncOpenAI(base_url=setting.url + "/v1", api_key=KEY, max_retries=2) as sdk:
        with pytest.raises(openai.InternalServerError) as caught:
            await sdk.chat.completions.create(model="tale-1", messages=USER)
    assert caught.value.status_code == 502
    assert caught.value.code == "protocol_violation"
    assert len(setting.worker.submissions) == 1


async def test_a_failed_stream_says_so_and_resets_the_socket_without_done(setting: Setting) -> None:
    setting.worker.script.fail_at = 1
    body = {"model": "tale-1", "messages": USER, "stream": True}
    received = b""
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
        http.post(setting.url + "/v1/chat/completions", json=body) as response,
    ):
        with pytest.raises(aiohttp.ClientError):
            async for part in response.content.iter_any():
                received += part
    lines = [line.removeprefix(b"data: ") for line in received.split(b"\n\n") if line]
    assert json.loads(lines[-1])["error"]["code"] == "engine_failed"
    assert b"[DONE]" not in received


async def test_a_client_that_hangs_up_cancels_the_job_at_the_worker(setting: Setting) -> None:
    held, entered, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def gate(canvas: int) -> None:
        if canvas == 1:
            entered.set()
            try:
                await held.wait()
            finally:
                cancelled.set()

    setting.worker.script.gate = gate
    async with setting.sdk() as sdk:
        stream = await sdk.chat.completions.create(model="tale-1", messages=USER, stream=True)
        await entered.wait()
        await stream.close()
        async with asyncio.timeout(10):
            await cancelled.wait()
    assert setting.worker.cancels == 1
    assert not next(iter(setting.worker.books.values())).unpaid


async def test_silence_is_filled_with_comments_that_the_sdk_skips(setting: Setting) -> None:
    runner, url = await serve(setting.client, heartbeat_s=0.01)
    beats = asyncio.Event()
    setting.worker.script.gate = lambda canvas: beats.wait()
    body = {"model": "tale-1", "messages": USER, "stream": True}
    received = b""
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
        http.post(url + "/v1/chat/completions", json=body) as response,
    ):
        async for part in response.content.iter_any():
            received += part
            if b": denoising" in received:
                beats.set()
    await runner.cleanup()
    assert b": denoising\n\n" in received
    assert received.endswith(b"data: [DONE]\n\n")


# --- the door


async def test_without_a_key_only_loopback_names_are_answered(setting: Setting) -> None:
    runner, url = await serve(setting.client, api_key=None)
    async with aiohttp.ClientSession() as http:
        async with http.get(url + "/v1/models") as response:
            assert response.status == 200
        async with http.get(url + "/v1/models", headers={"Host": "evil.example:80"}) as response:
            assert response.status == 403
        async with http.post(url + "/v1/chat/completions", data="{}") as response:
            assert response.status == 415
        async with http.post(url + "/v1/chat/completions", json=[1]) as response:
            assert response.status == 400
        async with http.post(
            url + "/v1/chat/completions",
            data=io.BytesIO(b" " * (5 << 20)),
            headers={"Content-Type": "application/json"},
        ) as response:
            assert response.status == 413
    await runner.cleanup()


async def test_metrics_count_what_was_paid(setting: Setting) -> None:
    async with setting.sdk() as sdk:
        await sdk.chat.completions.create(model="tale-1", messages=USER)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:
        async with http.get(setting.url + "/metrics") as response:
            text = await response.text()
        async with http.get(setting.url + "/health") as response:
            assert (await response.json())["status"] == "ok"
    assert "piecework_gateway_canvases_total 4.0" in text
    assert f"piecework_gateway_spent_base_units_total {float(setting.worker.paid())}" in text
