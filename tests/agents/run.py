"""Run other people's clients against a gateway with a scripted worker, and print a table.

`make agents` makes the environments from the lock files and runs this. Each client is a process of
its own with OPENAI_BASE_URL, as a user would start it. The worker speaks the real protocol. What it
says is made up from the tools and keys that it is shown.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from piecework_protocol.kinds.text import OutputSegment, TextContent
from tests.support.client.gateways import KEY, MODEL, scripted_market
from tests.support.client.scripted_worker import Mind, final, tool_call

ROOT: Final = Path(__file__).resolve().parents[2]
CLIENTS: Final = ROOT / "tests" / "agents" / "clients"
ENVIRONMENTS: Final = ROOT / "build" / "agents"
TIMEOUT_S: Final = 180.0
VALUES: Final[dict[str, str]] = {
    "city": "Oslo",
    "name": "Ann",
    "age": "7",
    "days": "2",
    "degrees": "-4",
    "sky": "clear",
    "location": "Oslo",
}
"""What is written behind a key."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client: its script, and the environment that it runs in. `node` is npm's."""

    script: str
    environment: str

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        return self.script.partition(".")[0].partition("/")[0]

    @property
    def command(self) -> tuple[str, ...]:
        """What runs it."""
        path = str(CLIENTS / self.script)
        if self.environment == "node":
            return ("node", path)
        return (str(ENVIRONMENTS / self.environment / "bin" / "python"), "-P", path)


EVERY: Final = (
    Client("openai_sdk.py", "newer"),
    Client("typesafe.py", "newer"),
    Client("langchain.py", "newer"),
    Client("pydantic_ai_agent.py", "newer"),
    Client("llm_tool.py", "newer"),
    Client("instructor_client.py", "older"),
    Client("litellm_client.py", "older"),
    Client("aider_chat.py", "aider"),
    Client("ai_sdk/check.mjs", "node"),
)


def says(content: TextContent) -> Sequence[OutputSegment]:
    """Call the first tool, or answer."""
    talk = content.conversation
    last = talk.messages[-1]
    if last.role == "tool":
        return (final(f"The tool said: {last.text}"),)
    if talk.tools:
        schema = json.loads(talk.tools[0].parameters)
        call = {"name": talk.tools[0].name, "arguments": sample(schema)}
        return (tool_call(json.dumps(call)),)
    if "hello.py" in last.text or any("hello.py" in m.text for m in talk.messages):
        return (final('hello.py\n```\nprint("hello, world")\n```\n'),)
    return (final(f"You said: {last.text}"),)


def sample(schema: dict[str, Any]) -> dict[str, Any]:
    """Arguments for the properties of a schema."""
    found = {}
    for name, inner in schema.get("properties", {}).items():
        value = VALUES.get(name, "text")
        found[name] = int(value) if inner.get("type") == "integer" else value
    return found


def fills(before: str, _: int) -> str:
    """Write behind the last key."""
    key = before.rsplit('"', 3 if before.endswith('"') else 2)[1]
    return VALUES.get(key, "text")


async def run(client: Client, url: str) -> tuple[bool, str]:
    """Run one client, and return whether it passed and its last words."""
    programs = ENVIRONMENTS / client.environment / "bin"
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": folder,
            "OPENAI_BASE_URL": url + "/v1",
            "OPENAI_API_KEY": KEY,
            "PIECEWORK_URL": url,
            "PIECEWORK_MODEL": MODEL,
            "NO_COLOR": "1",
        }
        process = await asyncio.create_subprocess_exec(
            *client.command,
            cwd=folder,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                output, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return False, f"it took more than {TIMEOUT_S:.0f} s"
    words = output.decode(errors="replace").strip()
    return process.returncode == 0, words


async def main(wanted: Sequence[str]) -> int:
    """Run the clients whose script is named, or all of them."""
    failed = 0
    for client in EVERY:
        if wanted and client.name not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            async with scripted_market(Path(folder), Mind(says, fills)) as market:
                passed, words = await run(client, market.url)
                jobs = len(market.worker.submissions)
        failed += not passed
        last = words.splitlines()[-1] if words else ""
        print(f"{'passed' if passed else 'FAILED'}  {client.name:20} {jobs:3} jobs  {last}")
        if not passed:
            print(words)
    return failed


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])) != 0)
