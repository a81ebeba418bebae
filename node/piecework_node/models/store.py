"""The models that were pulled: one folder per model and revision. This module uses no network.

    <store>/<owner>/<name>/revisions/<revision>      the commit that it stood for at the last pull
    <store>/<owner>/<name>/<commit>/<name>/   the checkpoint folder; manifest.sha256 is written last
                                    .pull/           where from, which files, and what is on its way

A revision is complete when its manifest is there and every file has its size. The manifest is
written once, atomically, when every file is in its place and durable. The folder has the name of
the model, because offers take the name from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import platformdirs

from piecework.base import jsons
from piecework.base.files import FileError, write_public
from piecework_model.checkpoint.manifest import MANIFEST_FILE, compose, manifest_digest
from piecework_node.errors import ConfigError, ModelNotPulled, ModelStoreError
from piecework_node.models.name import DEFAULT_REVISION, HubFile, ModelName, is_commit, is_revision

MAX_RECORD_BYTES: Final = 4 * 2**20
"""Of source.json and of a manifest: 4,096 files of some 250 bytes are 1 MB."""
MIN_COMMIT_CHARS: Final = 7
"""Of a shortened commit, as git shows it."""
_FORMAT: Final = 1


def default_store() -> Path:
    """Return where models are kept by default."""
    return platformdirs.user_data_path("piecework") / "models"


@dataclass(frozen=True, slots=True)
class Pulled:
    """A revision in the store. `digest` is the model digest, 32 bytes. None: not complete."""

    model: ModelName
    commit: str
    revisions: tuple[str, ...]
    folder: Path
    files: int
    size_bytes: int
    present_bytes: int
    digest: bytes | None

    @property
    def complete(self) -> bool:
        """Whether everything is there."""
        return self.digest is not None


class Revision:
    """The folder of one model at one commit, complete or not."""

    def __init__(self, home: Path, model: ModelName, commit: str) -> None:
        self.model, self.commit = model, commit
        self.root = home / commit
        self.folder = self.root / model.name
        # No model can have this name.
        self._work = self.root / ".pull"
        self._record = self._work / "source.json"
        self._partials = self._work / "partial"

    def partial(self, file: HubFile) -> Path:
        """Return where a file grows. Two contents never share a file, because of the digest."""
        return self._partials / f"{file.name}.{file.digest}"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let one pull work at a time. The kernel's lock (flock) ends with the process."""
        with _disk(self.root):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._work.mkdir(exist_ok=True)
            descriptor = os.open(self._work / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ModelStoreError(f"another process is pulling into {self.root}") from None
            yield
        finally:
            os.close(descriptor)

    def begin(self, endpoint: str, files: tuple[HubFile, ...]) -> None:
        """Record which files will be here."""
        record = {
            "format": _FORMAT,
            "endpoint": endpoint,
            "repository": self.model.repository,
            "commit": self.commit,
            "files": [asdict(file) for file in files],
        }
        _write(self._record, json.dumps(record, indent=1) + "\n")

    def finish(self, sha256_by_name: Mapping[str, str]) -> bytes:
        """Write the manifest, which makes the revision complete. Return the model digest."""
        text = compose(sha256_by_name)
        _write(self.folder / MANIFEST_FILE, text)
        with _disk(self.root):
            for left in self._partials.glob("*"):
                left.unlink()
        return manifest_digest(text)

    def present_bytes(self, files: tuple[HubFile, ...]) -> int:
        """Return how many bytes of the files are here, in whole or partial files."""
        return sum(min(file.size_bytes, self._present(file)) for file in files)

    def _present(self, file: HubFile) -> int:
        return _size(self.folder / file.name) or _size(self.partial(file)) or 0

    def has_all(self, files: tuple[HubFile, ...]) -> bool:
        """Whether every file is here with its size. `piecework models verify` checks contents."""
        return self.digest() is not None and all(
            _size(self.folder / file.name) == file.size_bytes for file in files
        )

    def digest(self) -> bytes | None:
        """Return the model digest that the manifest states. None: not complete."""
        text = _read(self.folder / MANIFEST_FILE)
        return None if text is None else manifest_digest(text)

    def files(self) -> tuple[HubFile, ...] | None:
        """Return the files that the last pull wanted. None: no pull got that far."""
        text = _read(self._record)
        if text is None:
            return None
        try:
            record: Any = jsons.loads(text)
            if record["format"] != _FORMAT:
                raise ValueError(f"format {record['format']}")
            return tuple(_file(entry) for entry in record["files"])
        except (ValueError, KeyError, TypeError) as error:
            raise ModelStoreError(
                f"{self._record} is not the record of a pull ({error}). Remove {self.root} and "
                "pull again."
            ) from None


class ModelStore:
    """All pulled models below one folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_store()

    def revision(self, model: ModelName, commit: str) -> Revision:
        """Return the place of a model at a commit. It may be empty."""
        return Revision(self._home(model), model.at(commit), commit)

    def point(self, model: ModelName, commit: str) -> None:
        """Remember which commit the model's revision, or the default one, stands for."""
        revision = model.revision or DEFAULT_REVISION
        if not is_commit(revision):
            _write(self._home(model) / "revisions" / quote(revision, safe=""), commit + "\n")

    def all(self) -> tuple[Pulled, ...]:
        """Return everything in the store by name and commit, complete or not."""
        models = (
            ModelName(owner.name, home.name)
            for owner in _folders(self.root)
            for home in _folders(owner)
        )
        return tuple(pulled for model in models for pulled in self._of(model))

    def find(self, model: ModelName) -> Pulled:
        """Return the complete revision that a name means.

        A commit may be shortened. Without a revision it is the default one as it was last pulled,
        else the only one that is here.

        Raises:
            ModelNotPulled: there is none. The text says what to run.
        """
        here = self._of(model)
        wanted = model.revision
        chosen = [p for p in here if wanted in {p.commit, *p.revisions}] if wanted else []
        if not chosen and len(wanted) >= MIN_COMMIT_CHARS:
            chosen = [p for p in here if p.commit.startswith(wanted)]
        if not wanted:
            chosen = [p for p in here if DEFAULT_REVISION in p.revisions]
            chosen = chosen or [p for p in here if p.complete] or here
        if not chosen:
            raise ModelNotPulled(f"{model} is not in {self.root}. Run: {self._command(model)}")
        if len(chosen) > 1:
            known = ", ".join(p.commit[:12] for p in chosen)
            raise ModelNotPulled(
                f"{model} is here at {known}. Name one: {model.repository}@{known[:12]}"
            )
        if not chosen[0].complete:
            # Only we understand a shortened commit. A hub knows whole ones.
            again = (
                model.at(chosen[0].commit)
                if wanted and wanted not in chosen[0].revisions
                else model
            )
            raise ModelNotPulled(f"{model} is not complete. Run: {self._command(again)}")
        return chosen[0]

    def _command(self, model: ModelName) -> str:
        elsewhere = "" if self.root == default_store() else f" --store {self.root}"
        return f"piecework models pull {model}{elsewhere}"

    def _home(self, model: ModelName) -> Path:
        return self.root / model.owner / model.name

    def _of(self, model: ModelName) -> list[Pulled]:
        home = self._home(model)
        names: dict[str, list[str]] = {}
        for path in sorted((home / "revisions").glob("*")):
            if is_revision(unquote(path.name)):
                names.setdefault((_read(path) or "").strip(), []).append(unquote(path.name))
        commits = [folder.name for folder in _folders(home) if is_commit(folder.name)]
        places = [
            (self.revision(model, commit), tuple(names.get(commit, ()))) for commit in commits
        ]
        return [
            _pulled(place, revisions, files)
            for place, revisions in places
            if (files := place.files()) is not None
        ]


def _pulled(place: Revision, revisions: tuple[str, ...], files: tuple[HubFile, ...]) -> Pulled:
    return Pulled(
        model=ModelName(place.model.owner, place.model.name),
        commit=place.commit,
        revisions=revisions,
        folder=place.folder,
        files=len(files),
        size_bytes=sum(file.size_bytes for file in files),
        present_bytes=place.present_bytes(files),
        digest=place.digest() if place.has_all(files) else None,
    )


def checkpoint_folder(text: str, store: ModelStore) -> Path:
    """Return the checkpoint folder that a setting means: a folder, or the name of a pulled model.

    A folder that exists is that folder, even if its path looks like a name.

    Raises:
        ModelNotPulled: it can only be a name, and that model is not here.
    """
    path = Path(text)
    with _disk(path):
        if path.is_dir() or not is_model_name(text):
            return path
    return store.find(ModelName.parse(text)).folder


def is_model_name(text: str) -> bool:
    """Whether it has the form owner/name or owner/name@revision."""
    try:
        ModelName.parse(text)
    except ConfigError:
        return False
    return True


# --- the disk


def _file(entry: Mapping[str, Any]) -> HubFile:
    name, size, digest = entry["name"], entry["size_bytes"], entry["digest"]
    if (
        not (isinstance(name, str) and isinstance(size, int) and isinstance(digest, str))
        or "/" in name
    ):
        raise ValueError("a file without a name, a size or a digest")
    return HubFile(name, size, digest)


def _folders(path: Path) -> list[Path]:
    with _disk(path):
        return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _size(path: Path) -> int | None:
    with _disk(path):
        return path.stat().st_size if path.is_file() else None


def _read(path: Path) -> str | None:
    """Return a small text of ours. None: there is none."""
    with _disk(path):
        if not path.is_file():
            return None
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise ModelStoreError(f"{path} is larger than {MAX_RECORD_BYTES} bytes")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ModelStoreError(f"{path} is not UTF-8 text") from None


def _write(path: Path, text: str) -> None:
    """Replace a small file, atomically and durably."""
    with _disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_public(path, text.encode(), replace=True)
    except FileError as error:
        raise ModelStoreError(str(error)) from None


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelStoreError(f"{error.filename or path}: {error.strerror or error}") from None
