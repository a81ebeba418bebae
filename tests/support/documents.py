"""The code blocks of the documents, and a shell session that runs them as a reader would.

A block of commands or code has a comment before it that says how it is known to work:

    <!-- run -->                   tests/integration/docs runs it, in the order of the page
    <!-- run by FILE -->           FILE (a script or a test) has these lines and runs them
    <!-- from FILE -->             it is a part of FILE, which a test compiles or runs
    <!-- not tried: REASON -->     nobody runs it, and this is why
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = frozenset({"sh", "python", "solidity", "js"})
"""Languages that a reader would run. Blocks in these have a marker."""
DATA = frozenset({"text", "json", "toml", "ini", "yaml", "mermaid"})
"""Languages of output, files and drawings."""
READY_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 180.0
_FENCE = re.compile(
    r"^(?:<!-- (?P<marker>[^\n]*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page. `marker` is empty when there is no comment before it."""

    page: str
    line: int
    language: str
    marker: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Every document that people read, the generated reference included."""
    outside = [*ROOT.glob("*.md"), ROOT / "contracts" / "README.md"]
    return sorted([*outside, *(ROOT / "docs").rglob("*.md")])


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    return [
        Block(name, text.count("\n", 0, m.start()) + 1, m["language"], m["marker"] or "", m["text"])
        for m in _FENCE.finditer(text)
    ]


@dataclass
class Session:
    """One shell in one folder. Variables live on from block to block, servers too."""

    folder: Path
    environment: dict[str, str]
    ports: dict[str, str]
    """Ports of the pages, and the free ports that stand for them here."""
    servers: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(self, block: Block) -> None:
        """Run a block; `AssertionError` names it and shows what was printed."""
        text = self._with_free_ports(block.text)
        if block.language == "python":
            script = self.folder / "example.py"
            script.write_text(text, encoding="utf-8")
            self._finish(block, f"exec {sys.executable} -P {script}")
            return
        waiting: list[str] = []
        for command in text.replace("\\\n", " ").splitlines():
            if command.endswith(" &"):
                self._finish(block, "\n".join(waiting))
                waiting = []
                self._serve(block, command.removesuffix(" &"))
            else:
                waiting.append(command)
        self._finish(block, "\n".join(waiting))

    def stop(self) -> None:
        """End every server, the last one first."""
        for server in reversed(self.servers):
            server.terminate()
            try:
                server.communicate(timeout=COMMAND_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.communicate()

    def _with_free_ports(self, text: str) -> str:
        pattern = re.compile(r"\b(" + "|".join(self.ports) + r")\b")
        return pattern.sub(lambda match: self.ports[match[1]], text)

    @property
    def _variables(self) -> Path:
        return self.folder / ".variables"

    def _script(self, commands: str) -> list[str]:
        known = f". {self._variables}\n" if self._variables.exists() else ""
        return ["bash", "-c", f"set -eu -o pipefail\nset -a\n{known}{commands}"]

    def _finish(self, block: Block, commands: str) -> None:
        if not commands.strip():
            return
        keep = "" if commands.startswith("exec ") else f"\nexport -p > {self._variables}"
        done = subprocess.run(
            self._script(commands + keep),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        said = f"{block.where}\n{commands}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, said
        assert "Traceback" not in done.stderr, said

    def _serve(self, block: Block, command: str) -> None:
        """Start a server and wait for its first line, which says that it is ready."""
        log = self.folder / f"server-{len(self.servers)}.log"
        with log.open("w") as errors:
            server = subprocess.Popen(
                self._script(f"exec {command}"),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.servers.append(server)
        assert server.stdout is not None
        readable, _, _ = select.select([server.stdout], [], [], READY_TIMEOUT_S)
        first = server.stdout.readline() if readable else ""
        assert '"ready": true' in first, f"{block.where}\n{command}\n{first}{log.read_text()}"


def clean_environment(home: Path, path: list[Path]) -> dict[str, str]:
    """What a reader's shell has: a home of its own, the installed command, no setting of ours."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIECEWORK_", "XDG_"))}
    searched = [str(folder) for folder in path] + [kept["PATH"]]
    return {**kept, "HOME": str(home), "PATH": os.pathsep.join(searched)}
