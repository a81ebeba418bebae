"""`piecework.client` as a program imports it: documented names, light to import, coded errors."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import get_args

import pytest

import piecework.client
from piecework.base.amounts import Token
from piecework.client import (
    InsufficientFunds,
    JobFailed,
    JobInterrupted,
    NoWorkerFits,
    PieceworkError,
    ProtocolViolation,
    Refusal,
    content,
    errors,
    events,
    requests,
)
from piecework.client.errors import ClientError, Reason, SettingsError
from piecework.client.funds import Funds
from piecework.client.sdk import PieceworkClient
from piecework_protocol.types import JobId
from tests.support.documents import ROOT

USD = Token(b"\x01" * 20, "tUSDC", 6)
JOB = JobId(bytes(32))
HEAVY = ("web3", "grpc", "rich", "torch", "aiohttp", "eth_account", "pydantic")
MOST_NAMES = 25
"""What the package itself promises. Everything else is in one of the modules below it."""
MODULES = (piecework.client, content, errors, events, requests)
NAMES = [(module.__name__, name) for module in MODULES for name in module.__all__]


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(import_module(module)))


def definition(module: str, name: str) -> tuple[str, str]:
    """The module that defines a name, and the docstring that stands there."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and any(a.name == name for a in node.names):
            return definition(node.module or "", name)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, ast.get_docstring(node) or ""
    body = tree(module).body
    for node, after in pairwise(body):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            said = ast.literal_eval(after.value) if isinstance(after, ast.Expr) else ""
            return module, str(said)
    raise AssertionError(f"{module} has no {name}")


def test_the_package_itself_has_few_names() -> None:
    assert len(piecework.client.__all__) <= MOST_NAMES


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_public_name_exists_and_is_documented(module: str, name: str) -> None:
    place, docstring = definition(module, name)
    assert docstring, f"{place}.{name} has no docstring"
    assert getattr(import_module(module), name) is getattr(import_module(place), name)
    assert name in dir(import_module(module))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_module_sorts_its_names_and_is_on_the_page_of_the_sdk(module: object) -> None:
    name, names = vars(module)["__name__"], vars(module)["__all__"]
    page = (ROOT / "docs" / "reference" / "sdk.md").read_text()
    assert f"\n::: {name}\n" in page
    assert list(names) == sorted(set(names))


def test_the_events_and_requests_of_the_sdk_are_all_public() -> None:
    for union, module in (
        (events.JobEvent, events),
        (requests.JobRequest, requests),
        (content.TemplatePart, content),
    ):
        assert {kind.__name__ for kind in get_args(union)} <= set(module.__all__)


@pytest.mark.parametrize("kind", [PieceworkClient, Funds])
def test_every_error_that_the_client_promises_is_public(kind: type) -> None:
    promised = set[str]()
    for method in vars(kind).values():
        _, _, raises = (inspect.getdoc(method) or "").partition("Raises:\n")
        promised |= set(re.findall(r"^    (\w+): ", raises.partition("\n\n")[0], re.MULTILINE))
    assert promised and promised <= set(errors.__all__)


def test_the_module_of_errors_has_every_error_of_the_package_and_of_its_own() -> None:
    ours = [getattr(piecework.client, name) for name in piecework.client.__all__]
    ours += [value for value in vars(errors).values() if isinstance(value, type)]
    wanted = {kind.__name__ for kind in ours if issubclass(kind, PieceworkError)}
    assert wanted <= set(errors.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'PieceworkClints'"):
        getattr(piecework.client, "PieceworkClints")  # noqa: B009


@pytest.mark.process
def test_the_package_and_the_modules_of_its_names_are_light_to_import() -> None:
    program = (
        "import sys; from piecework.client import InsufficientFunds, Refusal, TextRequest; "
        "from piecework.client import content, errors, events, requests; "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
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
