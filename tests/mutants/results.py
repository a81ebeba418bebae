"""Verdicts that outlive a run, so that the next one goes on where the last one was cut."""

from __future__ import annotations

import enum
import hashlib
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class Verdict(enum.Enum):
    """What the tests say of a mutant."""

    KILLED = "killed"
    SURVIVED = "survived"
    INVALID = "invalid"
    """It does not compile, so no test could say anything of it."""
    UNDECIDED = "undecided"
    """Its tests took too long. Gas ends every loop, so only a busy machine takes that long."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A verdict, the suite that gave it, and the seconds that it took."""

    verdict: Verdict
    suite: str
    seconds: float


class ResultsFile:
    """One JSON line for each verdict. A line that was cut is tried again. Safe among threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, Tried] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        for line in text.split("\n"):
            try:
                row = json.loads(line)
                tried = Tried(Verdict(row["verdict"]), row["suite"], row["seconds"])
                self._known[row["key"]] = tried
            except (ValueError, KeyError, TypeError):
                continue
        if text and not text.endswith("\n"):
            path.write_text(text + "\n")

    def get(self, key: str) -> Tried | None:
        """Give what is known of a key."""
        return self._known.get(key)

    def add(self, key: str, tried: Tried, what: str) -> None:
        """Keep a verdict. One that is undecided is not kept: it says something of the machine."""
        if tried.verdict is Verdict.UNDECIDED:
            return
        row = {
            "key": key,
            "verdict": tried.verdict.value,
            "suite": tried.suite,
            "seconds": round(tried.seconds, 2),
            "what": what,
        }
        with self._lock:
            self._known[key] = tried
            with self._path.open("a") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def digest_of(files: Iterable[Path], root: Path) -> str:
    """Digest names and contents of files."""
    whole = hashlib.sha256()
    for path in sorted(files):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        whole.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return whole.hexdigest()


def key_of(project: str, mutant: object) -> str:
    """Name a mutant of a project with this digest."""
    return hashlib.sha256(f"{project}\n{mutant!r}".encode()).hexdigest()
