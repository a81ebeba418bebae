"""A flag that contradicts an existing home is refused by its name. It is never dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from typer.testing import CliRunner

from piecework.chain.deployment import Deployment
from piecework.chain.descriptor import MarketDescriptor
from piecework.commands import client, worker
from piecework_protocol.types import Address, Amount, Seconds
from tests.support.system.worker_process import OPERATOR_SECRET, PASSWORD, write_key

PAYOUT, OTHER = "0x000000000000000000000000000000000000bEEF", "0x" + "ab" * 20
MARKET = Deployment(
    31337,
    Address(b"\x03" * 20),
    "tUSDC",
    6,
    Amount(10**8),
    Seconds(7 * 24 * 3600),
    rpc_url="http://127.0.0.1:9",
)
OF_NO_HOME = {
    "json",
    "home",
    "password_file",
    "faucet",
    "no_register",
    "no_start",
    "help",
}
"""Options that say how, and nothing of what the home says."""
OF_THE_REGISTRY = {"stake", "owner"}
"""Held to the registration, which tests/unit/node/test_registration.py tries."""


@dataclass(frozen=True, slots=True)
class FlagWords:
    """How an option is written so that it agrees with the home, and so that it does not."""

    same: tuple[str, ...]
    other: tuple[str, ...]


INIT: Mapping[str, FlagWords] = {
    "payout": FlagWords((PAYOUT.lower(),), (OTHER,)),
    "endpoint": FlagWords(("a.example.org:1",), ("b.example.org:1",)),
    "bind": FlagWords(("127.0.0.1:50099",), ("127.0.0.1:50098",)),
    "price_prompt": FlagWords(("0.070",), ("0.08",)),
    "price_output": FlagWords(("0.30",), ("9",)),
    "price_steps": FlagWords(("0.002",), ("0.003",)),
    "slots": FlagWords(("3",), ("4",)),
    "index": FlagWords(("http://127.0.0.1:1",), ("http://127.0.0.1:2",)),
    "relay": FlagWords(("127.0.0.1:7443",), ("127.0.0.1:7444",)),
    "rpc_url": FlagWords(("http://127.0.0.1:8",), ("http://127.0.0.1:7",)),
    "model": FlagWords(("models",), ("others",)),
    "vllm": FlagWords((), ("http://127.0.0.1:3",)),
    "vllm_model": FlagWords((), ()),
    "signer": FlagWords((), ("unix:/run/piecework/signer.sock",)),
    "deployment": FlagWords(("deployment.json",), ("moved.json",)),
}
"""Of a diffusion home with a key of its own, which has neither vLLM endpoints nor a signer.
--vllm-model goes with --vllm alone."""
CLIENT: Mapping[str, FlagWords] = {
    "deployment": FlagWords(("deployment.json",), ("moved.json",)),
    "index": FlagWords(("http://127.0.0.1:1",), ("http://127.0.0.1:2",)),
    "rpc_url": FlagWords(("http://127.0.0.1:8",), ("http://127.0.0.1:7",)),
}


def options_of(app: typer.Typer, command: str) -> set[str]:
    """The options of a command, by the names of their parameters."""
    group: Any = typer.main.get_command(app)
    return {str(p.name) for p in group.commands[command].params if p.param_type_name == "option"}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a worker's home, its market and a market that moved, entered for a while."""
    folder = tmp_path_factory.mktemp("flags")
    with pytest.MonkeyPatch.context() as context:
        context.chdir(folder)
        context.setenv("PIECEWORK_PASSWORD", PASSWORD)
        MARKET.save(folder / "deployment.json")
        moved = {**MARKET.to_json(), "rpc_url": "http://127.0.0.1:10"}
        (folder / "moved.json").write_text(json.dumps(moved))
        for model in ("models", "others"):
            (folder / model).mkdir()
        (folder / "worker").mkdir(mode=0o700)
        write_key(folder / "worker" / "operator.json", OPERATOR_SECRET)
        made = init({name: words.same for name, words in INIT.items()})
        assert made.exit_code == 0, made.output
        yield folder


def spelled(chosen: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [word for name, words in chosen.items() for w in words for word in (flag(name), w)]


def run(app: typer.Typer, *words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def init(chosen: Mapping[str, tuple[str, ...]]) -> Any:
    needed: dict[str, tuple[str, ...]] = {
        "payout": (PAYOUT,),
        "deployment": ("deployment.json",),
    }
    words = spelled({**needed, **chosen})
    return run(worker.app, "init", "--home", "worker", "--no-register", *words)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_every_option_that_makes_a_home_is_tried_here() -> None:
    known = {"init": INIT.keys(), "join": INIT.keys() | {"fingerprint"}}
    for command, tried in known.items():
        left = options_of(worker.app, command) - tried - OF_NO_HOME - OF_THE_REGISTRY
        assert not left, f"worker {command}: {left}"
    left = options_of(client.app, "init") - CLIENT.keys() - OF_NO_HOME - {"second_key"}
    assert not left, f"client init: {left}"  # tests/integration/gateway has --second-key


@hypothesis(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    chosen=st.dictionaries(
        st.sampled_from([name for name, words in INIT.items() if words.same]),
        st.booleans(),
        max_size=4,
    )
)
def test_what_agrees_is_fine_and_what_differs_is_named_and_changes_nothing(
    place: Path, chosen: dict[str, bool]
) -> None:
    before = files(place / "worker")
    said = init({n: INIT[n].other if differs else INIT[n].same for n, differs in chosen.items()})
    differing = {flag(name) for name, differs in chosen.items() if differs}
    if not differing:
        assert said.exit_code == 0, said.output
    elif "--deployment" in differing:
        assert said.exit_code == 1 and said.stderr.startswith("error: --deployment: ")
    else:
        assert said.exit_code == 1
        named = said.stderr.removeprefix("error: ").partition(": ")[0]
        assert set(named.split(", ")) == differing, said.stderr
    assert files(place / "worker") == before


def test_a_backend_is_not_changed_by_a_flag(place: Path) -> None:
    before = files(place / "worker")
    said = init({"vllm": INIT["vllm"].other, "vllm_model": ("a name",)})
    assert said.exit_code == 1
    named = said.stderr.removeprefix("error: ").partition(": ")[0]
    assert {"--vllm", "--vllm-model", "backend"} <= set(named.split(", "))
    assert files(place / "worker") == before


def test_a_key_of_the_home_does_not_give_way_to_a_signer(place: Path) -> None:
    before = files(place / "worker")
    said = init({"signer": INIT["signer"].other})
    assert said.exit_code == 1
    assert said.stderr.startswith("error: --signer: "), said.stderr
    assert files(place / "worker") == before


def test_joining_again_holds_the_same_flags_to_the_home(place: Path) -> None:
    described = run_describe(place)
    before = files(place / "worker")
    tried = options_of(worker.app, "join") & INIT.keys()
    assert len(tried) > 8
    joining = ("join", str(described), "--home", "worker", "--no-start")
    first = run(worker.app, *joining, "--fingerprint", OTHER)
    assert first.exit_code == 1 and "--fingerprint" in first.stderr
    for name in sorted(tried):
        said = run(worker.app, *joining, *KEY_OF_MARKET, *spelled({name: INIT[name].other}))
        assert said.exit_code == 1, (name, said.output)
        assert said.stderr.splitlines()[-1].startswith(f"error: {flag(name)}"), said.stderr
    emptied = run(worker.app, *joining, *KEY_OF_MARKET, "--endpoint", "")
    assert emptied.exit_code == 1 and "error: --endpoint: " in emptied.stderr
    after = files(place / "worker")
    assert after.pop("market.json")
    assert after == {name: text for name, text in before.items() if name in after}


KEY_OF_MARKET: list[str] = []


def run_describe(place: Path) -> Path:
    """A signed descriptor of the home's market."""
    from piecework.commands import market

    write_key(place / "key.json", b"\x05" * 32)
    said = run(
        market.app,
        *("describe", "--deployment", "deployment.json", "--out", "market.json"),
        *("--key", "key.json", "--json"),
    )
    assert said.exit_code == 0, said.output
    KEY_OF_MARKET[:] = ["--fingerprint", json.loads(said.stdout)["signer"]]
    assert MarketDescriptor.decode((place / "market.json").read_bytes()).deployment == MARKET
    return place / "market.json"


@pytest.mark.parametrize("name", CLIENT)
def test_a_clients_home_is_held_to_the_flags_as_well(place: Path, name: str) -> None:
    same = {n: words.same for n, words in CLIENT.items()}
    write_key_once(place)
    made = run(client.app, "init", "--home", "client", *spelled(same))
    assert made.exit_code == 0, made.output
    before = files(place / "client")
    said = run(client.app, "init", "--home", "client", *spelled(same | {name: CLIENT[name].other}))
    assert said.exit_code == 1 and said.stderr.startswith(f"error: {flag(name)}: "), said.output
    assert files(place / "client") == before


def write_key_once(place: Path) -> None:
    """A keystore that opens fast."""
    folder = place / "client"
    if not folder.exists():
        folder.mkdir(mode=0o700)
        write_key(folder / "wallet.json", b"\x06" * 32)
