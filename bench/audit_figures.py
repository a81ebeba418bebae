"""The files of `bench.audit`: what was measured, block by block, and what it was measured with.

A folder holds the figures of one checkpoint, of one setting and of one code. Its name says so. A
worker has a file in it. Each line is a block, complete or not there at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.code_version import code_digest
from bench.report import ROOT, environment, package_version
from piecework_model.checkpoint.manifest import bundled_checkpoint_path, verify
from piecework_model.errors import ModelError

MEASURED: Final = ("bench.audit_measure",)
"""What makes the figures. What only counts them may change."""
ROOTS: Final = {
    "bench": ROOT / "bench",
    "piecework": ROOT / "piecework",
    "piecework_model": ROOT / "model" / "piecework_model",
    "piecework_protocol": ROOT / "protocol" / "piecework_protocol",
}
LIBRARIES: Final = ("torch", "transformers", "numpy")


@dataclass(frozen=True, slots=True)
class MeasuredSetting:
    """What decides figures: whose they are. Digests are in hex.

    model: the model digest. older: of the earlier edition, empty if there is none. code: of what
    measures (`code_version`). shown_by: the machine of workers whose canvases came as files, empty
    if they ran here.
    """

    model: str
    older: str
    device: str
    code: str
    libraries: dict[str, str]
    shown_by: str = ""

    @property
    def key(self) -> str:
        """Name the folder."""
        parts = [self.older, self.device, self.code, self.libraries, self.shown_by]
        settled = json.dumps(parts, sort_keys=True)
        return f"{self.model[:12]}-{hashlib.sha256(settled.encode()).hexdigest()[:12]}"

    def described(self) -> dict[str, Any]:
        """Give the members, for the first line of a file."""
        return {name: getattr(self, name) for name in self.__slots__}


def setting(
    device: str, folder: Path | None, older: Path | None, shown_by: str = ""
) -> MeasuredSetting:
    """Find out what is measured here and now.

    Raises:
        CheckpointError: A folder does not match its manifest.
    """
    return MeasuredSetting(
        model=verify(folder or bundled_checkpoint_path()).hex(),
        older=verify(older).hex() if older else "",
        device=device,
        code=code_digest(MEASURED, ROOTS),
        libraries={name: package_version(name) for name in LIBRARIES},
        shown_by=shown_by,
    )


class WorkerFigures:
    """The figures of one worker: a file with a line for each block.

    blocks: rows of each block, one a canvas. seconds: what measuring took, of all blocks.
    """

    def __init__(self, file: Path) -> None:
        """Take up what is there. A line that was cut off is not."""
        self.file = file
        self.blocks: dict[int, list[dict[str, Any]]] = {}
        self.seconds = 0.0
        for line in whole_lines(file):
            if "block" in line:
                self._take(line)

    @property
    def canvases(self) -> int:
        """How many there are."""
        return sum(map(len, self.blocks.values()))

    def begin(self, measured: MeasuredSetting) -> None:
        """Begin to append: say what is measured and on which machine.

        Raises:
            ModelError: The file has figures of another checkpoint.
        """
        lines, described = whole_lines(self.file), measured.described()
        said = [line["setting"] for line in lines if "setting" in line]
        if any(one["model"] != measured.model for one in said):
            raise ModelError(f"{self.file} has figures of another checkpoint. Move it away")
        here = environment(*LIBRARIES)
        if described not in said:
            lines.append({"setting": described})
        if not any(line.get("environment") == here for line in lines):
            lines.append({"environment": here})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # A line that was cut off would spoil the next one.
        made = self.file.with_suffix(".new")
        made.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        made.replace(self.file)

    def add(self, block: dict[str, Any]) -> None:
        """Keep a block, as `audit_measure` answers it."""
        line = {name: block[name] for name in ("block", "seconds", "canvases")}
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        self.blocks[line["block"]] = line["canvases"]
        self.seconds += line["seconds"]


def whole_lines(file: Path) -> list[dict[str, Any]]:
    """Read the lines of a file of figures that were written to their end."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let nobody else append to a folder.

    Raises:
        ModelError: Another process does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ModelError(f"another process measures into {folder}") from None
        yield


def earlier_edition(folder: Path) -> Path | None:
    """Take the edition of the bundled checkpoint before this one out of the repository's history.

    folder: where to write it. None if there is none that can be asked the same: with this tokenizer
    and canvas.
    """
    place = bundled_checkpoint_path().relative_to(ROOT).as_posix()

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout

    commits = git("log", "--format=%H", "--", f"{place}/model.safetensors").decode().split()
    here = (ROOT / place / "model.safetensors").read_bytes()
    for commit in commits:
        if git("show", f"{commit}:{place}/model.safetensors") == here:
            continue
        names = git("ls-tree", "--name-only", commit, f"{place}/").decode().split()
        for name in names:
            (folder / Path(name).name).write_bytes(git("show", f"{commit}:{name}"))
        return folder if asked_alike(folder, ROOT / place) else None
    return None


def asked_alike(one: Path, other: Path) -> bool:
    """Say whether two checkpoints take the same token ids and canvases."""

    def facts(folder: Path) -> tuple[bytes, int, int]:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tokenizer = (folder / "tokenizer.json").read_bytes()
        return tokenizer, config["canvas_length"], config["text_config"]["vocab_size"]

    return facts(one) == facts(other)
