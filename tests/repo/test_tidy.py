"""Rules of the house that can fail the build."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from piecework_protocol import generate as schema
from tests.repo.test_documents import IMPORT_PACKAGES, ROOT, sources
from tests.support.source_facts import HOLE, facts_of

LONGEST_FUNCTION_LINES = 60
LONGEST_MODULE_LINES = 620
SLEEPS = {"asyncio.sleep", "time.sleep", "sleep"}
BANNED_IMPORTS = {"pickle", "cPickle", "dill", "marshal", "shelve", "torch.serialization"}
BANNED_CALLS = {"eval", "exec", "torch.load", "yaml.load", "os.system", "time.sleep"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_rules_see_what_they_are_about(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import pickle, os.path as p\nfrom torch.serialization import load\n"
        "class Stray(Exception): pass\n"
        "async def f():\n    time.sleep(0)\n    await asyncio.sleep(0.1)\n"
        "    return (await ask()).json(), f'{a} lacks {b}', [x, '-m', 'piecework']\n"
    )
    facts = facts_of(path)
    assert facts.imports == [(1, "pickle"), (1, "os.path"), (2, "torch.serialization")]
    assert [(kind.name, kind.bases) for kind in facts.classes] == [
        ("Stray", frozenset({"Exception"}))
    ]
    assert facts.functions == [(4, "f", 4)]
    calls = {(call.line, call.name, call.argument) for call in facts.calls}
    assert {(5, "time.sleep", "0"), (6, "asyncio.sleep", "0.1"), (7, ".json", "")} <= calls
    option = "-m"  # written beside the others, this test would break the rule of -P itself
    assert facts.started == [(7, ["", option, "piecework"])]
    assert f"{HOLE} lacks {HOLE}" in facts.strings


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{relative(path)}:{at} {name} has {lines} lines"
        for path in sources()
        for at, name, lines in facts_of(path).functions
        if lines > LONGEST_FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_no_module_is_where_everything_meets() -> None:
    generated = {"piecework_pb2.py"}
    long = [
        f"{relative(p)}: {count} lines"
        for p in sources()
        if p.name not in generated
        and (count := len(p.read_text().splitlines())) > LONGEST_MODULE_LINES
    ]
    assert not long, "\n".join(long)


def test_nothing_unpickles_evaluates_or_sleeps() -> None:
    found = []
    for path in sources():
        facts = facts_of(path)
        banned = [(line, name) for line, name in facts.imports if name in BANNED_IMPORTS]
        banned += [(call.line, call.name) for call in facts.calls if call.name in BANNED_CALLS]
        found += [f"{relative(path)}:{line} {name}" for line, name in banned]
    assert not found, "\n".join(found)


def test_json_from_outside_is_held_to_a_depth() -> None:
    """Importing web3 lifts the recursion limit so far that json.loads can end the process."""
    shells = {
        ("piecework", "chain"),
        ("piecework", "client"),
        ("piecework", "market"),
        ("node", "piecework_node"),
    }
    found = []
    for path in sources():
        if path.relative_to(ROOT).parts[:2] not in shells:
            continue
        for call in facts_of(path).calls:
            if call.name in {"json.loads", "json.load"} or call.name.endswith(".json"):
                found.append(
                    f"{relative(path)}:{call.line} {call.name}; use piecework.base.jsons.loads"
                )
    assert not found, "\n".join(found)


def test_nothing_is_left_to_be_done_in_the_code() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [relative(p) for p in sources() if marks.search(p.read_text())]
    assert not found


# Not every system lets a test make a network namespace, or has promtool, which no package of Python
# or npm has.
SKIPPED_BY_NAME = {
    "tests/integration/packaging/test_promtool.py": 1,
    "tests/support/market/ways.py": 1,
}


def test_the_tests_patch_nothing_and_skip_nothing() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        if path == Path(__file__):
            continue
        text = path.read_text()
        for banned in ("mock.patch", "monkeypatch.setattr", "pytest.mark.skip"):
            assert banned not in text, f"{relative(path)} uses {banned}"
        allowed = SKIPPED_BY_NAME.get(relative(path), 0)
        assert text.count("pytest.skip") == allowed, f"{relative(path)} skips"


def test_the_tests_sleep_in_one_place_only() -> None:
    """`asyncio.sleep(0)` gives the other tasks their turn; anything else is a guess at time."""
    found = []
    for path in (ROOT / "tests").rglob("*.py"):
        if path == ROOT / "tests" / "support" / "waiting.py":
            continue
        for call in facts_of(path).calls:
            if call.name in SLEEPS and call.argument != "0":
                found.append(f"{relative(path)}:{call.line} use tests.support.waiting")
    assert not found, "\n".join(found)


def test_no_class_name_exists_twice() -> None:
    """One word means one thing: in the program, and in what the tests share."""
    helpers = (ROOT / "tests" / "support").rglob("*.py")
    for paths in (sources(), list(helpers)):
        places: dict[str, list[str]] = {}
        for path in paths:
            if "/v2/" in relative(path):
                continue
            for kind in facts_of(path).classes:
                if not kind.name.startswith("_"):
                    places.setdefault(kind.name, []).append(f"{relative(path)}:{kind.line}")
        assert len(places) > 20
        twice = {name: where for name, where in places.items() if len(where) > 1}
        assert not twice, twice


def test_every_error_that_others_may_see_has_one_root() -> None:
    """A caller can catch `PieceworkError` and has caught all that we raise on purpose."""
    strays = []
    for path in sources():
        if path.relative_to(ROOT).parts[0] == "bench":
            continue
        for kind in facts_of(path).classes:
            if not kind.name.startswith("_") and kind.bases & {"Exception", "BaseException"}:
                strays.append(f"{relative(path)}:{kind.line} {kind.name}")
    assert [stray.rpartition(" ")[2] for stray in strays] == ["PieceworkError"], strays


@pytest.mark.parametrize("package", IMPORT_PACKAGES)
def test_the_package_names_resolve_inside_this_checkout(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__file__ is not None and Path(module.__file__).is_relative_to(ROOT)


def test_one_module_reads_the_generated_protobuf_code() -> None:
    readers = [
        relative(p)
        for p in sources()
        if "piecework_pb2" in p.read_text() and "_protocol/v2/" not in relative(p)
    ]
    protocol = "protocol/piecework_protocol"
    assert set(readers) == {f"{protocol}/wire.py", f"{protocol}/generate.py"}


def test_one_module_reads_the_archived_evm() -> None:
    """docs/adr/0007: what is behind `Evm` can be exchanged as long as nothing else knows it."""
    named = re.compile(r"^\s*(from|import) eth(\.|\s)", re.MULTILINE)
    readers = [p.name for p in sources() if named.search(p.read_text())]
    assert readers == ["evm.py"]


def test_the_generated_code_is_that_of_the_schema() -> None:
    assert schema.stale() == []


def test_no_file_names_a_private_host_or_path() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lock = json.loads((ROOT / "contracts" / "package-lock.json").read_text())
    resolved = {p.get("resolved", "") for p in lock["packages"].values()}
    assert all(not url or url.startswith("https://registry.npmjs.org/") for url in resolved)
    for name in listed.stdout.split():
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".yml", ".json", ".sol", ".txt", ""}
            and path.is_file()
        ):
            assert "/work/" + "main" not in path.read_text(errors="replace"), name


@pytest.mark.process
def test_the_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from piecework.cli import build; build(None); "
        "print([m for m in ('torch', 'web3', 'grpc', 'rich', 'eth_account') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.process
def test_a_client_imports_without_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; "
        "import piecework.client.gateway.server, piecework.client.jobs.driver; "
        "import piecework.market.server, piecework.chain.reading.reader; "
        "import piecework.commands.client; "
        "print('ok')"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.stdout.strip() == "ok", result.stderr
