"""`piecework demo` as a process, and its report re-verified by somebody who believes none of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from piecework_protocol import merkle
from piecework_protocol.eip712 import Domain
from piecework_protocol.objects import Finish, Receipt, Voucher
from piecework_protocol.signing import signed_by
from piecework_protocol.types import (
    Amount,
    ChannelId,
    Digest,
    JobId,
    Signature,
    Uint32,
    Uint64,
    parse_address,
    parse_hex,
)
from tests.support.system.commands import piecework

pytestmark = pytest.mark.process

LINE_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
KEYS = {
    *("text", "model_digest", "canvases", "tokens", "denoising_steps", "receipts", "receipts_root"),
    *("voucher", "settlement_tx", "gas_used", "balances", "timings_ms"),
}


async def test_one_job_of_the_demo_is_paid_settled_and_proved() -> None:
    said = await piecework("demo", "--json", "--seed", "7")
    assert said.code == 0, said.err
    report: dict[str, Any] = json.loads(said.out)
    assert report.keys() >= KEYS
    assert report["ok"] and report["problems"] == []
    assert report["text"] and report["canvases"] == len(report["receipts"]) >= 1
    assert len(report["settlement_tx"]) == 66 and report["gas_used"] > 0
    assert all(value >= 0 for value in report["timings_ms"].values())
    verify(report)


async def test_fifty_jobs_are_all_delivered_and_settled_by_one_transaction() -> None:
    said = await piecework(
        "demo", "--jobs", "50", "--concurrency", "8", "--max-tokens", "32", "--json"
    )
    assert said.code == 0, said.err
    report: dict[str, Any] = json.loads(said.out)
    assert len(report["jobs"]) == len({job["job_id"] for job in report["jobs"]}) == 50
    assert all(job["error"] is None and job["canvases"] >= 1 for job in report["jobs"])
    assert report["settlements"] == 1
    assert {r["job_id"] for r in report["receipts"]} == {job["job_id"] for job in report["jobs"]}
    verify(report)


async def test_a_demo_that_is_kept_serves_the_openai_package_until_it_is_interrupted() -> None:
    async with kept_demo() as (process, text):
        found = re.search(r'base_url="(?P<url>\S+)", api_key="(?P<key>\w+)"', text)
        model = re.search(r'create\(model="(?P<name>[^"]+)"', text)
        assert found is not None and model is not None, text
        async with openai.AsyncOpenAI(
            base_url=found["url"], api_key=found["key"], max_retries=0, timeout=LINE_TIMEOUT_S
        ) as sdk:
            messages: Any = [{"role": "user", "content": "Tell me a story about an owl and a map."}]
            whole = await sdk.chat.completions.create(
                model=model["name"], messages=messages, seed=3, max_tokens=64
            )
            pieces = []
            async for chunk in await sdk.chat.completions.create(
                model=model["name"], messages=messages, seed=3, max_tokens=64, stream=True
            ):
                pieces += [choice.delta.content or "" for choice in chunk.choices]
        assert whole.choices[0].message.content == "".join(pieces) != ""
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(STOP_TIMEOUT_S):
            assert await process.wait() == 0


@asynccontextmanager
async def kept_demo() -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """`piecework demo --keep` with its output piped; what it printed up to the last line to
    paste."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "piecework", "demo", "--keep", "--max-tokens", "32"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "200"},
    )
    try:
        assert process.stdout is not None
        lines: list[str] = []
        async with asyncio.timeout(LINE_TIMEOUT_S):
            while not lines or " worker status --home " not in lines[-1]:
                line = await process.stdout.readline()
                assert line, "the demo ended: " + "".join(lines)
                lines.append(line.decode())
        yield process, "".join(lines)
    finally:
        if process.returncode is None:
            process.terminate()
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()


def verify(report: dict[str, Any]) -> None:
    """Signatures, proofs and sums, from the report's own numbers and the protocol alone."""
    rows, claimed, balances = report["receipts"], report["voucher"], report["balances"]
    domain = Domain(report["domain"]["chain_id"], parse_address(report["domain"]["escrow"]))
    receipts = [receipt_of(row) for row in rows]
    operator = parse_address(report["worker"]["operator"])
    last: dict[JobId, bytes] = {}
    for row, receipt in zip(rows, receipts, strict=True):
        digest = domain.digest(receipt)
        assert digest == parse_hex(row["digest"], 32, "digest")
        assert signed_by(domain, receipt, signature_of(row), operator)
        assert receipt.previous == last.get(receipt.job, receipt.job)
        last[receipt.job] = digest
    root = merkle.root([domain.digest(receipt) for receipt in receipts])
    assert root == parse_hex(report["receipts_root"], 32, "root")
    voucher = Voucher(
        ChannelId(parse_hex(claimed["channel"], 32, "channel")),
        Amount(claimed["cumulative"]),
        Uint64(claimed["count"]),
        Digest(root),
    )
    assert signed_by(domain, voucher, signature_of(claimed), parse_address(report["payer"]))
    assert (len(rows), sum(r.amount for r in receipts)) == (voucher.count, voucher.cumulative)
    before, after = balances["before"], balances["after"]
    assert sum(before.values()) == sum(after.values())
    assert after["receiver"] - before["receiver"] == voucher.cumulative + report["fees"]


def receipt_of(row: dict[str, Any]) -> Receipt:
    """The receipt as an object, from the report."""
    return Receipt(
        job=JobId(parse_hex(row["job_id"], 32, "job")),
        canvas=Uint32(row["canvas"]),
        output_digest=Digest(parse_hex(row["output_digest"], 32, "output")),
        trace_root=Digest(parse_hex(row["trace_root"], 32, "trace")),
        steps=Uint32(row["steps"]),
        units=Uint32(row["units"]),
        amount=Amount(row["amount"]),
        finish=Finish(row["finish"]),
        total_prompt_tokens=Uint32(row["total_prompt_tokens"]),
        total_units=Uint32(row["total_units"]),
        total_steps=Uint32(row["total_steps"]),
        total_amount=Amount(row["total_amount"]),
        previous=Digest(parse_hex(row["previous"], 32, "previous")),
    )


def signature_of(row: dict[str, Any]) -> Signature:
    """The 65 bytes."""
    return Signature(parse_hex(row["signature"], 65, "signature"))
