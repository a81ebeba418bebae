"""The explorer of a real index, in a browser: it follows a real worker without a reload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer

from piecework.chain.dev.embedded import EmbeddedChain
from piecework.processes import ProcessGroup
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Timestamp, to_hex
from tests.support.chain.chains import deployed
from tests.support.chain.fake_chain import DOMAIN, EXPLORER
from tests.support.market.databases import an_offer_store
from tests.support.system.browser import Page, browser
from tests.support.system.commands import piecework
from tests.support.system.worker_process import OPERATOR_SECRET, PASSWORD, WorkerProcess
from tests.unit.market.test_explorer import Explorer

pytestmark = [pytest.mark.process, pytest.mark.slow]

OFFERS = "document.querySelector('#offers')"
LINK = (
    f"{OFFERS}.querySelector('a[href=\"/workers/{to_hex(LocalSigner(OPERATOR_SECRET).address)}\"]')"
)
STEPS = f"{OFFERS}.querySelector('td[data-label=\"1,000 steps\"]')?.textContent.trim()"
MODELS = "document.querySelector('#models').innerText"
EMPTY = f"{OFFERS}?.textContent.includes('No live offer fits.')"
WITHIN_S = 90.0
"""The page asks every ten seconds, and a busy machine takes its time."""


async def set_price(worker: WorkerProcess, price: str) -> None:
    said = await piecework(
        *("worker", "set", "price_per_thousand_steps", price),
        *("--home", str(worker.home.root)),
        environment={"PIECEWORK_PASSWORD": PASSWORD},
    )
    assert said.code == 0, said.err


class Reader:
    """Somebody who has typed half a name, in the middle of the page. They see no reload."""

    def __init__(self, page: Page) -> None:
        self.page, self.place = page, 0.0

    async def begin(self) -> None:
        await self.page.value("""(() => {
          const input = document.querySelector("#find input[name=model]");
          window.loaded = "once";
          input.value = "tal";
          input.scrollIntoView({ block: "start" });
          input.focus({ preventScroll: true });
          input.setSelectionRange(1, 2);
        })()""")
        self.place = await self.page.value("document.activeElement.getBoundingClientRect().top")
        assert await self.page.value("scrollY") > 0

    async def is_undisturbed(self) -> None:
        now: dict[str, Any] = await self.page.value("""(({ activeElement: at }) => ({
          loaded: window.loaded, name: at.name, value: at.value, from: at.selectionStart,
          to: at.selectionEnd, top: at.getBoundingClientRect().top
        }))(document)""")
        top = now.pop("top")
        assert now == {"loaded": "once", "name": "model", "value": "tal", "from": 1, "to": 2}
        assert abs(top - self.place) < 2


async def test_an_offer_comes_changes_its_price_and_goes_and_no_reader_is_disturbed(
    tmp_path: Path,
) -> None:
    async with (
        EmbeddedChain() as chain,
        deployed(chain) as market,
        ProcessGroup(tmp_path / "logs") as group,
        browser(tmp_path / "profile") as page,
    ):
        market.deployment.save(tmp_path / "deployment.json")
        places = ("--home", str(tmp_path / "index"), "--port", "0")
        deployment = ("--deployment", str(tmp_path / "deployment.json"))
        index = await group.start("index", ["market", "start", *places, *deployment])
        worker = await WorkerProcess.register(
            tmp_path / "worker", market.deployment, pace_s=0.01, indexes=(index.ready["url"],)
        )
        await page.resize(390, 600, "light")
        await page.call("Page.enable")
        await page.call("Page.navigate", url=index.ready["url"])
        await page.becomes(EMPTY, within_s=WITHIN_S)
        reader = Reader(page)
        await reader.begin()

        await worker.start()
        await page.becomes(LINK, within_s=WITHIN_S)
        await reader.is_undisturbed()

        await set_price(worker, "0.002")
        await page.becomes(f"{STEPS} === '0.002'", within_s=WITHIN_S)
        await reader.is_undisturbed()

        before = await page.value(f"{LINK}.focus({{ preventScroll: true }}), {MODELS}")
        await set_price(worker, "0.003")
        await page.becomes(f"{MODELS} !== {before!r}", within_s=WITHIN_S)
        assert await page.value(f"document.activeElement === {LINK} && {STEPS}") == "0.002"
        await page.value("document.activeElement.blur()")
        await page.becomes(f"{STEPS} === '0.003'", within_s=WITHIN_S)

        assert await worker.drain() == 0
        await page.becomes(EMPTY, within_s=WITHIN_S)
        assert await page.value("window.loaded") == "once"


async def test_charts_that_grow_above_a_reader_do_not_move_what_is_read(tmp_path: Path) -> None:
    store = await an_offer_store(tmp_path / "market.db", DOMAIN)
    explorer = Explorer(store, EXPLORER)
    heading = "document.querySelector('#models h2').getBoundingClientRect().top"
    async with (
        TestServer(explorer.server.application()) as server,
        browser(tmp_path / "profile") as page,
    ):
        await page.resize(390, 600, "light")
        await page.call("Page.enable")
        await page.call("Page.navigate", url=str(server.make_url("/")))
        await page.becomes("document.querySelector('#history')?.innerText.includes('nothing')")
        await page.value("document.querySelector('#models').scrollIntoView()")
        before, scrolled = await page.value(heading), await page.value("scrollY")
        await store.record(Timestamp(int(explorer.clock.wall())))
        await page.becomes("document.querySelector('#history polyline')", within_s=WITHIN_S)
        assert await page.value("scrollY") > scrolled + 50
        assert abs(await page.value(heading) - before) < 2
    await store.close()
