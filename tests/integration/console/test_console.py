"""The console where people see it: in a browser of every width, and on a terminal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image
from textual.widgets import DataTable, Static

from piecework.base.connections import Refused
from piecework.base.listener import bind
from piecework.commands._worker.console import ConsoleApp, PanelView
from piecework_node.console.model import Snapshot
from piecework_node.console.page import render
from piecework_node.console.panels import panels
from piecework_node.daemon.admin import ADDRESS_FILE, AdminServer, admin_token, console_url
from piecework_node.daemon.changing import ChangeReport
from piecework_node.owner.readings import GpuReading
from tests.support.node.own_tests import idle_tests
from tests.support.node.snapshots import CARD, a_card, a_snapshot
from tests.support.system.browser import CONTRAST, OVERFLOW, browser

pytestmark = pytest.mark.process

WIDTHS = (390, 768, 1440, 2560)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
EMPTY = replace(
    a_snapshot(None),
    canvases=(),
    hours=(),
    days=(),
    models=(),
    clients=(),
    alerts=(),
    jobs={},
    refusals={},
    model="",
    state="starting",
)

SHOWN = {"busy": a_snapshot(CARD), "silent card": a_snapshot(GpuReading("card")), "empty": EMPTY}


class Shown:
    """Implements `admin.Operations` around one snapshot."""

    ready = True

    def __init__(self) -> None:
        self.snapshot = a_snapshot()

    async def console(self) -> Snapshot:
        return self.snapshot

    async def status(self) -> dict[str, Any]:
        return {}

    async def evidence(self, asked: bytes) -> dict[str, Any]:
        raise AssertionError("a reader exports nothing")

    def metrics(self) -> bytes:
        return b""

    def settle(self) -> None:
        raise AssertionError("a reader presses no button")

    def drain(self) -> None:
        raise AssertionError("a reader presses no button")

    @property
    def cards(self) -> tuple[str, ...]:
        return ("0",)

    def pause(self, seconds: float | None, card: str | None) -> None:
        raise AssertionError("a reader presses no button")

    def resume(self, card: str | None) -> tuple[str, ...]:
        raise AssertionError("a reader presses no button")

    async def change(self, texts: Mapping[str, str], unset: Sequence[str]) -> ChangeReport:
        raise AssertionError("a reader changes nothing")

    own_tests = idle_tests()

    def connection_refused(self, why: Refused) -> None:
        raise AssertionError(why)


@asynccontextmanager
async def served(home: Path) -> AsyncIterator[Shown]:
    """The admin port of a worker of this home."""
    shown = Shown()
    server = AdminServer(shown, admin_token(home))
    port = await server.start_on(bind("127.0.0.1", 0))
    (home / ADDRESS_FILE).write_text(json.dumps({"host": "127.0.0.1", "port": port}))
    try:
        yield shown
    finally:
        await server.stop()


async def test_the_page_fits_and_is_readable_at_every_width_in_both_schemes(
    tmp_path: Path,
) -> None:
    async with browser(tmp_path) as page:
        for name, shown in SHOWN.items():
            for width in WIDTHS:
                for scheme in SCHEMES:
                    await page.resize(width, 900, scheme)
                    await page.show(render(shown))
                    await page.keep(f"console {name}", width, scheme)
                    found = await page.value(OVERFLOW) + await page.value(CONTRAST)
                    found += await page.axe()
                    assert not found, (name, width, scheme, found)


async def test_a_picture_shows_the_whole_page_as_wide_as_the_window(tmp_path: Path) -> None:
    async with browser(tmp_path) as page:
        await page.resize(390, 900, "dark")
        await page.show(render(a_snapshot()))
        width = await page.value("document.documentElement.clientWidth")
        height = await page.value("document.documentElement.scrollHeight")
        file = tmp_path / "page.png"
        await page.screenshot(file)
        with Image.open(file) as picture:
            assert height > 900 and picture.size == (width, height)


async def test_the_assertions_notice_what_stands_out_and_what_is_too_pale(tmp_path: Path) -> None:
    broken = (
        "<style>p { color: #aaa; background: #fff; white-space: nowrap }</style><p>" + "x" * 900
    )
    async with browser(tmp_path) as page:
        await page.resize(390, 900, "light")
        await page.show(broken)
        assert "the page" in await page.value(OVERFLOW)
        assert len(await page.value(CONTRAST)) == 1
        rules = {line.partition(" ")[0] for line in await page.axe()}
        assert {"color-contrast", "document-title", "html-has-lang", "landmark-one-main"} <= rules


async def test_the_page_is_live_and_leaves_alone_what_somebody_reads(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    async with served(home) as shown, browser(tmp_path / "profile") as page:
        await page.call("Page.enable")
        await page.call("Page.navigate", url=console_url(home))
        await page.becomes("document.getElementById('live')?.textContent === 'live'")
        assert await page.value("location.search") == ""
        await page.value("getSelection().selectAllChildren(document.querySelector('#gpu dl'))")
        busy = replace(CARD, temperature_c=84)
        shown.snapshot = replace(shown.snapshot, state="paused", cards=(a_card(gpu=busy),))
        await page.becomes("document.querySelector('#worker dd').textContent === 'paused'")
        assert "71 °C" in await page.value("document.querySelector('#gpu').textContent")
        await page.value("getSelection().removeAllRanges()")
        await page.becomes("document.querySelector('#gpu').textContent.includes('84 °C')")


async def test_the_terminal_shows_every_panel_and_is_used_by_keys_alone(tmp_path: Path) -> None:
    async with served(tmp_path) as shown:
        app = ConsoleApp(tmp_path)
        async with app.run_test(size=(80, 200)) as pilot, asyncio.timeout(60):
            wanted = {panel.key for panel in panels(shown.snapshot)}
            while {view.id for view in app.query(PanelView)} != wanted:
                await pilot.pause(0.05)
            await pilot.pause()
            for panel in panels(shown.snapshot):
                title, line = app.query_one(f"#{panel.key}", PanelView).query(Static)
                assert title.display and str(title.render()) == panel.title
                below = panel.note if panel.rows else panel.empty
                assert line.display == bool(below) and str(line.render()) == below
            table = app.query_one("#clients", PanelView).query_one(DataTable)
            assert table.get_row_at(0)[3] == "1,300.00"
            growing = app.query_one("#test", PanelView).query_one(DataTable).get_row_at(3)[1]
            assert growing.startswith("…") and growing.endswith("lit</i> the whole forest.")
            before = app.focused
            await pilot.press("tab", "tab")
            assert isinstance(app.focused, DataTable) and app.focused is not before
            dark = app.current_theme.dark
            await pilot.press("d")
            assert app.current_theme.dark is not dark
            shown.snapshot = replace(shown.snapshot, state="paused")
            said = app.query_one("#said", Static)
            while "paused" not in str(said.render()):
                await pilot.pause(0.05)


async def test_a_slow_machine_does_not_end_the_terminal(tmp_path: Path) -> None:
    """The next look comes before the panels of the last one are drawn."""
    async with served(tmp_path) as shown:
        app = ConsoleApp(tmp_path)
        async with app.run_test(size=(80, 200)) as pilot, asyncio.timeout(60):
            wanted = {panel.key for panel in panels(shown.snapshot)}
            while {view.id for view in app.query(PanelView)} != wanted:
                app.refresh_panels()
                await pilot.pause(0)
            await pilot.pause()
            assert len(app.query(DataTable)) == len(wanted)


async def test_a_terminal_says_that_its_worker_is_gone(tmp_path: Path) -> None:
    async with served(tmp_path):
        pass
    app = ConsoleApp(tmp_path)
    async with app.run_test() as pilot, asyncio.timeout(60):
        while "not live" not in str(app.query_one("#said", Static).render()):
            await pilot.pause(0.05)
