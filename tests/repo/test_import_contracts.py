"""Each contract of import-linter fails when something breaks it.

An import is added to the graph of the real imports, and the contract of pyproject.toml is asked. A
contract that holds whatever is imported protects nothing.
"""

from __future__ import annotations

import copy
import tomllib
from typing import Any

import grimp
import pytest
from importlinter.configuration import configure
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.independence import IndependenceContract
from importlinter.contracts.layers import LayersContract

from tests.repo.test_documents import ROOT

LINTER: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
    "importlinter"
]
CONTRACTS: dict[str, dict[str, Any]] = {made["name"]: made for made in LINTER["contracts"]}
KINDS: dict[str, Any] = {
    "forbidden": ForbiddenContract,
    "independence": IndependenceContract,
    "layers": LayersContract,
}
WITHOUT_ENGINE = "client, index, relay and signer have no engine, not even by way of others"
VIOLATIONS = [
    ("the house: ", "piecework.client.sdk", "piecework_node.home"),
    ("the house: ", "piecework.base.http", "piecework_protocol.types"),
    ("the protocol is pure", "piecework_protocol.merkle", "asyncio"),
    ("of the floor the protocol", "piecework_protocol.merkle", "piecework.base.text"),
    ("only the engine talks to torch", "piecework.client.sdk", "torch"),
    ("only piecework.chain talks", "piecework.client.sdk", "web3"),
    ("the engine has no network", "piecework_model.engine.engine", "socket"),
    ("what one command", "piecework.commands._client.move", "piecework.commands._worker.views"),
    ("rooms of piecework.chain", "piecework.chain.nodes.rpc", "piecework.chain.reading.reader"),
    ("what the contracts take", "piecework.chain.contracts.calls", "piecework.chain.nodes.rpc"),
    ("rooms of piecework.client", "piecework.client.journal.store", "piecework.client.sdk"),
    ("rooms of piecework_model", "piecework_model.layers.moe", "piecework_model.engine.engine"),
    ("rooms of piecework_node", "piecework_node.home", "piecework_node.daemon.daemon"),
    *(
        (WITHOUT_ENGINE, importer, imported)
        for importer in (
            "piecework.client.sdk",
            "piecework.market.server",
            "piecework.relay.server",
            "piecework.signer.server",
            # By way of the chain, which the client uses.
            "piecework.chain.reading.reader",
        )
        for imported in ("piecework_model.engine.engine", "piecework_model.requests")
    ),
]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """What imports what, with the libraries."""
    configure()
    return grimp.build_graph(*LINTER["root_packages"], include_external_packages=True)


def is_kept(name: str, graph: grimp.ImportGraph) -> bool:
    # As the reader of the program's own settings gives them: booleans are texts.
    options = {k: str(v) if isinstance(v, bool) else v for k, v in CONTRACTS[name].items()}
    session = {key: value for key, value in LINTER.items() if key != "contracts"}
    contract = KINDS[CONTRACTS[name]["type"]](name, session, options)
    return bool(contract.check(copy.deepcopy(graph), verbose=False).kept)


def test_every_contract_is_broken_by_something() -> None:
    broken = {name for name in CONTRACTS for start, *_ in VIOLATIONS if name.startswith(start)}
    assert broken == CONTRACTS.keys()


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_contract_holds(graph: grimp.ImportGraph, name: str) -> None:
    assert is_kept(name, graph)


@pytest.mark.parametrize(("start", "importer", "imported"), VIOLATIONS)
def test_a_contract_fails_on_an_import_that_breaks_it(
    graph: grimp.ImportGraph, start: str, importer: str, imported: str
) -> None:
    assert importer in graph.modules
    (name,) = (name for name in CONTRACTS if name.startswith(start))
    assert not graph.direct_import_exists(importer=importer, imported=imported)
    if imported not in graph.modules:
        graph.add_module(imported, is_squashed=True)
    graph.add_import(importer=importer, imported=imported, line_number=1, line_contents="")
    try:
        assert not is_kept(name, graph)
    finally:
        graph.remove_import(importer=importer, imported=imported)
