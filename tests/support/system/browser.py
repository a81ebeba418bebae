"""Headless Chromium over its DevTools protocol: one page, in the sizes and schemes of real windows.

It needs the program `chromium`. Nothing is downloaded.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp

from tests.support.waiting import until

SCREENSHOTS: Final = Path(__file__).resolve().parents[3] / "build" / "screenshots"
"""Where the tests of layouts leave their pictures for people. Git ignores it."""
START_S: Final = 60.0
ANSWER_S: Final = 60.0
MAX_MESSAGE_BYTES: Final = 64 * 2**20

CONTRAST: Final = """(() => {
  const channel = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255)
    + 0.0722 * channel(b / 255);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = parts(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
    if (["STYLE", "SCRIPT", "NOSCRIPT"].includes(node.tagName)) continue;
    const pair = [light(parts(getComputedStyle(node).color)), light(behind(node))].sort();
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (ratio < 4.5) found.push(`${walker.currentNode.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return found;
})()"""
"""Texts with less contrast than WCAG 2.2 AA asks of small ones."""

OVERFLOW: Final = """(() => {
  const wide = document.documentElement.clientWidth, found = [];
  if (document.documentElement.scrollWidth > wide) found.push("the page");
  for (const node of document.querySelectorAll("body *")) {
    const box = node.getBoundingClientRect();
    if (!box.width || getComputedStyle(node).clipPath !== "none") continue;
    if (node.closest("thead") && getComputedStyle(node.closest("thead")).clipPath !== "none")
      continue;
    if (box.right > wide + 1 || box.left < -1) found.push(`${node.tagName} ${node.textContent}`);
    if (node.scrollWidth > node.clientWidth + 1 && node.clientWidth &&
        getComputedStyle(node).display !== "inline") found.push(`in ${node.tagName} ${node.id}`);
  }
  return found.slice(0, 9).map((text) => text.slice(0, 120));
})()"""
"""What stands out of the window, or out of its own box."""


AXE_FILE: Final = Path(__file__).parents[1] / "npm" / "node_modules" / "axe-core" / "axe.min.js"
RUN_AXE: Final = """axe.run(document, {resultTypes: ["violations"], runOnly: [
  "wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}).then((found) =>
  found.violations.flatMap((rule) => rule.nodes.map((node) =>
    `${rule.id} (${rule.impact}): ${rule.help}: ${node.html.slice(0, 120)}`)))"""


class Page:
    """A tab of a running browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol. Events between are skipped."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(ANSWER_S):
            while True:
                answer = await self._socket.receive_json()
                if answer.get("id") == number:
                    assert "error" not in answer, answer
                    result: dict[str, Any] = answer["result"]
                    return result

    async def resize(self, width: int, height: int, scheme: Literal["light", "dark"]) -> None:
        """Be a window of this size, of somebody who prefers this scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def show(self, text: str) -> None:
        """Show a document that is given as text."""
        await self.call("Page.enable")
        tree = await self.call("Page.getFrameTree")
        frame = tree["frameTree"]["frame"]["id"]
        await self.call("Page.setDocumentContent", frameId=frame, html=text)

    async def value(self, expression: str) -> Any:
        """Evaluate an expression in the page, and wait for it if it is a promise."""
        result = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def becomes(self, expression: str, *, within_s: float = 30.0) -> None:
        """Wait until an expression is true in the page.

        Raises:
            TimeoutError: it did not become so within `within_s` seconds.
        """

        async def holds() -> bool:
            return bool(await self.value(f"Boolean({expression})"))

        await until(holds, within_s=within_s, poll_s=0.1)

    async def axe(self) -> list[str]:
        """Run axe-core in the page. Return what breaks WCAG 2.2 AA or its best practices."""
        assert AXE_FILE.is_file(), "axe-core is not installed: npm ci in tests/support/npm"
        source = await asyncio.to_thread(AXE_FILE.read_text, encoding="utf-8")
        await self.value(f"{source};0")
        found: list[str] = await self.value(RUN_AXE)
        return found

    async def keep(self, name: str, width: int, scheme: str) -> Path:
        """Leave a picture among those of all tests. Return its place."""
        file = SCREENSHOTS / f"{name.replace(' ', '-')}-{width}-{scheme}.png"
        await asyncio.to_thread(file.parent.mkdir, parents=True, exist_ok=True)
        await self.screenshot(file)
        return file

    async def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page, for people."""
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(shot["data"]))


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Page]:
    """Chromium with one empty page, and a profile of its own that is thrown away."""
    program = shutil.which("chromium")
    assert program, "the program chromium is not installed"
    process = await asyncio.create_subprocess_exec(
        program,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HOME": str(profile)},
    )
    try:
        port = await _port(process)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = json.loads(await answer.read())
            address = next(p for p in pages if p["type"] == "page")["webSocketDebuggerUrl"]
            async with session.ws_connect(address, max_msg_size=MAX_MESSAGE_BYTES) as socket:
                yield Page(socket)
    finally:
        process.kill()
        await process.wait()


async def _port(process: asyncio.subprocess.Process) -> int:
    assert process.stderr is not None
    async with asyncio.timeout(START_S):
        while line := await process.stderr.readline():
            _, found, address = line.decode().partition("ws://127.0.0.1:")
            if found:
                return int(address.partition("/")[0])
    raise AssertionError("chromium ended at its start")
