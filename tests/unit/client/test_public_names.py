"""`piecework.client` as a program imports it: documented names, light to import, coded errors."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import piecework.client
from piecework.base.amounts import Token
from piecework.client import (
    ClientError,
    InsufficientFunds,
    JobFailed,
    JobInterrupted,
    NoWorkerFits,
    PieceworkError,
    ProtocolViolation,
    Reason,
    Refusal,
    SettingsError,
)
from piecework_protocol.types import JobId

USD = Token(b"\x01" * 20, "tUSDC", 6)
JOB = JobId(bytes(32))
HEAVY = ("web3", "grpc", "rich", "torch", "aiohttp", "eth_account")


@pytest.mark.parametrize("name", piecework.client.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    value = getattr(piecework.client, name)
    assert inspect.getdoc(value), name
    assert name in dir(piecework.client)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'PieceworkClints'"):
        getattr(piecework.client, "PieceworkClints")  # noqa: B009


def test_the_package_and_its_errors_are_light_to_import() -> None:
    program = (
        "import sys; from piecework.client import InsufficientFunds, Refusal, TextRequest; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PieceworkError("x"), "piecework_error"),
        (ClientError("x"), "client_error"),
        (SettingsError("x"), "settings_error"),
        (NoWorkerFits("x"), "no_worker_fits"),
        (NoWorkerFits("x", retry_after_s=1.0), "workers_busy"),
        (NoWorkerFits("x", unknown_model=True), "model_not_found"),
        (InsufficientFunds(USD.amount(2), USD.amount(1)), "insufficient_funds"),
        (JobInterrupted(JOB, "x"), "job_interrupted"),
        (JobFailed(JOB, Reason.ENGINE_FAILED, "x"), "engine_failed"),
        (Refusal(Reason.PROMPT_TOO_LONG, "x"), "prompt_too_long"),
        (ProtocolViolation("4.1", "x"), "protocol_violation"),
    ],
)
def test_every_error_has_a_code_for_programs(error: PieceworkError, code: str) -> None:
    assert error.code == code


def test_what_a_worker_wrote_cannot_drive_a_terminal() -> None:
    hostile = "\x1b]0;owned\x07\u202egnp\nx"
    errors = [JobFailed(JOB, Reason.INTERNAL, hostile), NoWorkerFits("nobody", [hostile])]
    for error in errors:
        assert not any(c in str(error) for c in "\x1b\x07\u202e\n")
