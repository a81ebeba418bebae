"""The commands of the documents, typed in the order of the pages, in one market.

The first page starts a chain, an index, a worker and a gateway; the pages after it use them. A
reader who follows the documents does the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from piecework.demo.market import free_port
from tests.support.documents import ROOT, Session, blocks, clean_environment

PAGES = (
    "docs/market-by-hand.md",
    "docs/owners/models.md",
    "docs/owners/money.md",
    "docs/operating.md",
    "docs/apps/client.md",
    "docs/apps/spending.md",
    "docs/apps/gateway.md",
    "docs/apps/sdk.md",
    "docs/contracts/index.md",
    "docs/contracts/examples.md",
    "docs/contracts/bill.md",
    "docs/owners/keeping.md",
)
"""In this order. The last page ends the worker."""
NPM = ROOT / "tests" / "integration" / "docs" / "npm" / "node_modules"
FAST = {"PIECEWORK_WORKER_BENCHMARK_S": "0.3", "PIECEWORK_WORKER_THREADS": "1"}

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A shell in an empty folder; its servers end with the module."""
    folder = tmp_path_factory.mktemp("reader")
    ports = {port: str(free_port()) for port in ("8545", "8380", "8400", "50051")}
    path = [Path(sys.executable).parent, NPM / ".bin"]
    environment = clean_environment(folder, path) | FAST | {"NODE_PATH": str(NPM)}
    (folder / "contracts").symlink_to(ROOT / "contracts")
    (folder / "node_modules").symlink_to(NPM)
    (folder / "bill.mjs").symlink_to(NPM.parent / "bill.mjs")
    shell = Session(folder, environment, ports)
    try:
        yield shell
    finally:
        shell.stop()


def test_the_commands_of_the_pages_do_what_the_pages_say(session: Session) -> None:
    """One test: each page goes on where the one before it ended, so no two processes share them."""
    for page in PAGES:
        for block in blocks(ROOT / page):
            if block.marker == "run":
                session.run(block)


def test_every_page_with_commands_to_run_is_run() -> None:
    from tests.support.documents import pages

    marked = {b.page for page in pages() for b in blocks(page) if b.marker == "run"}
    assert marked <= set(PAGES), f"not in PAGES: {sorted(marked - set(PAGES))}"
