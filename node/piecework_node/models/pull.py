"""Pull a model from a hub into the store: choose its files, download, verify, write the manifest.

The small files come first. config.json decides whether this engine can run the model at all. With
the small files and the listed SHA-256 of the weights, the model digest is known before the first
byte of weights. Every file must have the digest that the hub lists. A download that stopped goes
on where it stopped.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from piecework.base import jsons
from piecework.base.text import one_line
from piecework_model.checkpoint.manifest import compose, covers, manifest_digest
from piecework_model.limits import MAX_CHECKPOINT_FILES, MAX_METADATA_FILE_BYTES
from piecework_node.errors import HubError, ModelRefused, ModelStoreError
from piecework_node.models.hub import Hub
from piecework_node.models.name import HubFile, ModelName
from piecework_node.models.partial_file import PartialFile, hash_file
from piecework_node.models.retries import Retries, RetryableError
from piecework_node.models.store import ModelStore, Pulled, Revision

MODEL_TYPE: Final = "diffusion_gemma"
CONFIG_FILE: Final = "config.json"
NEEDED: Final = (CONFIG_FILE, "generation_config.json", "tokenizer.json", "tokenizer_config.json")
"""Without these the engine refuses the folder. Better to know that before 50 GB."""
MAX_NAME_CHARS: Final = 128
"""Of a file. Names of the format have at most 45. A partial file has 65 more, and 255 is the limit.
"""
MAX_CHECKPOINT_BYTES: Final = 512 * 2**30
"""Ten times the published model of 26 B parameters in bfloat16."""
SPARE_BYTES: Final = 256 * 2**20
"""Left free on the disk, for journal, logs and other programs."""
CONNECTIONS: Final = 4
"""At once. Storage hosts give one connection 50 to 100 MB/s. More than a few are impolite."""
PROGRESS_BYTES: Final = 2**20
"""An attempt that brought so much does not count as a failure. So 50 GB arrive even over a line
that breaks every minute."""
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class PullObserver(Protocol):
    """Watches a pull."""

    def planned(self, model: ModelName, commit: str, files: tuple[HubFile, ...]) -> None:
        """These files will be there."""
        ...

    def at(self, file: HubFile, position: int) -> None:
        """So many bytes of a file are there. The count goes back to 0 if a file starts again.

        It comes at least once before the file is done, unless the file is empty.
        """
        ...

    def done(self, file: HubFile) -> None:
        """A file is whole, verified and in its place."""
        ...


@dataclass(frozen=True, slots=True)
class Received:
    """A pulled model, and the bytes that had to be downloaded for it this time."""

    pulled: Pulled
    downloaded_bytes: int


def free_bytes(folder: Path) -> int:
    """Return how many bytes the disk of a folder has left for us."""
    return shutil.disk_usage(folder).free


async def pull(
    hub: Hub,
    store: ModelStore,
    model: ModelName,
    *,
    watcher: PullObserver,
    expected_digest: bytes | None = None,
    free: Callable[[Path], int] = free_bytes,
) -> Received:
    """Bring a model into the store, or go on with an earlier pull.

    What arrived before an error stays, except what is damaged.

    Raises:
        HubError: the hub does not answer, or answers wrongly.
        HubRefusal: the hub declines.
        ModelRefused: this engine cannot run the model, or it is not the expected one.
        ModelStoreError: the disk fails.
    """
    commit = await hub.commit(model)
    files = select(model, await hub.files(model, commit))
    place = store.revision(model, commit)
    with place.locked():
        job = _Job(hub, place, files, watcher)
        if not place.has_all(files):
            watcher.planned(model, commit, files)
            _check_space(place, files, free)
            place.begin(hub.address, files)
            place.finish(await job.run(expected_digest))
        _check_digest(model, place.digest(), expected_digest)
        store.point(model, commit)
    return Received(store.find(model.at(commit)), job.downloaded_bytes)


def select(model: ModelName, listed: Iterable[HubFile]) -> tuple[HubFile, ...]:
    """Return the files of the checkpoint format (checkpoint/manifest.py) in a repository. Pure.

    The format has no code and no pickled weights.

    Raises:
        ModelRefused: the files are not a checkpoint that this engine may load.
    """
    files = tuple(file for file in listed if covers(file.name))
    names = {file.name for file in files}
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise ModelRefused(
            f"{model} is not a checkpoint in the published format: it has no {missing[0]}"
        )
    if not any(_is_weights(file) for file in files):
        raise ModelRefused(f"{model} has no .safetensors file; other weights are not read")
    if len(files) > MAX_CHECKPOINT_FILES:
        raise ModelRefused(
            f"{model} has {len(files)} files, at most {MAX_CHECKPOINT_FILES} are accepted"
        )
    for file in files:
        if not _PLAIN_NAME.fullmatch(file.name) or len(file.name) > MAX_NAME_CHARS:
            raise ModelRefused(
                f"{model} has a file with a name that no checkpoint needs: {file.name[:80]!r}"
            )
        if not _is_weights(file) and file.size_bytes > MAX_METADATA_FILE_BYTES:
            raise ModelRefused(
                f"{file.name} of {model} has {file.size_bytes} bytes, "
                f"at most {MAX_METADATA_FILE_BYTES} are read"
            )
    total = sum(file.size_bytes for file in files)
    if total > MAX_CHECKPOINT_BYTES:
        raise ModelRefused(
            f"{model} has {total} bytes, at most {MAX_CHECKPOINT_BYTES} are accepted"
        )
    return files


class _Job:
    """The downloads of one pull."""

    def __init__(
        self, hub: Hub, place: Revision, files: tuple[HubFile, ...], watcher: PullObserver
    ) -> None:
        self._hub, self._place, self._files, self._watcher = hub, place, files, watcher
        self.downloaded_bytes = 0

    async def run(self, expected_digest: bytes | None) -> dict[str, str]:
        """Bring every file to its place. Return SHA-256 by name."""
        config = [file for file in self._files if file.name == CONFIG_FILE]
        small = [file for file in self._files if not _is_weights(file) and file.name != CONFIG_FILE]
        weights = [file for file in self._files if _is_weights(file)]
        digests = await self._all(config)
        self._check_config()
        digests |= await self._all(small)
        self._check_small(small, weights)
        self._check_in_advance(digests, weights, expected_digest)
        digests |= await self._all(weights)
        # Check again: without a listed SHA-256 of every weight file, only now is the digest known.
        _check_digest(self._place.model, manifest_digest(compose(digests)), expected_digest)
        return digests

    async def _all(self, files: list[HubFile]) -> dict[str, str]:
        """Fetch several at a time. The first failure ends the others."""
        waiting = iter(files)
        digests: dict[str, str] = {}

        async def work() -> None:
            for file in waiting:
                digests[file.name] = await self._fetch(file)
                self._watcher.done(file)

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(min(CONNECTIONS, len(files))):
                    group.create_task(work(), name=f"download {number}")
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        return digests

    async def _fetch(self, file: HubFile) -> str:
        """Bring one file to its place, whole and verified. Return its SHA-256."""
        target = self._place.folder / file.name
        if target.is_file():
            found = await hash_file(target, file, lambda position: self._watcher.at(file, position))
            if found.is_listed:
                return found.sha256
            target.unlink()
        partial = await PartialFile.open(self._place.partial(file), file)
        try:
            await self._fill(partial, file)
            if not partial.is_listed and partial.pieces > 1:
                # A power cut, the disk or the server changed something between two pieces. Try once
                # more, from 0.
                partial.restart()
                await self._fill(partial, file)
            if not partial.is_listed:
                partial.discard()
                raise HubError(
                    f"{file.name} is not what the hub lists: expected digest {file.digest}"
                )
            return await partial.finish(target)
        finally:
            partial.close()

    async def _fill(self, partial: PartialFile, file: HubFile) -> None:
        """Download until the partial file has all of its bytes, right or wrong."""
        retries = Retries(file.name, self._hub.policy, self._hub.sleep, self._hub.on_wait)
        self._watcher.at(file, partial.position)
        while partial.position < file.size_bytes:
            before = partial.position
            try:
                await self._receive(partial, file)
            except RetryableError as error:
                if partial.position - before >= PROGRESS_BYTES:
                    retries.progressed()
                if error.from_start:
                    partial.restart()
                await retries.wait(error)

    async def _receive(self, partial: PartialFile, file: HubFile) -> None:
        """Make one transfer. `RetryableError`: it broke off."""
        place = self._place
        async with self._hub.open(place.model, place.commit, file, partial.position) as body:
            partial.begin(body.offset)
            async for chunk in body.chunks:
                if partial.position + len(chunk) > file.size_bytes:
                    raise HubError(
                        f"{file.name}: more than the {file.size_bytes} bytes listed are sent"
                    )
                partial.write(chunk)
                self.downloaded_bytes += len(chunk)
                self._watcher.at(file, partial.position)
        if partial.position < file.size_bytes:
            raise RetryableError(f"ended after {partial.position} of {file.size_bytes} bytes")

    # --- what the small files say

    def _check_config(self) -> None:
        """Check before anything else is downloaded."""
        config = self._json(CONFIG_FILE)
        if config.get("model_type") != MODEL_TYPE:
            raise ModelRefused(
                f"{self._place.model} is a {str(config.get('model_type'))[:40]!r}, not a "
                f"{MODEL_TYPE}: "
                "no weights were downloaded"
            )

    def _check_small(self, small: list[HubFile], weights: list[HubFile]) -> None:
        """Check before the weights that no code is asked for and no shard is missing."""
        for name in (CONFIG_FILE, "tokenizer_config.json"):
            if "auto_map" in self._json(name):
                raise ModelRefused(f"{name} of {self._place.model} asks for remote code (auto_map)")
        here = {file.name for file in weights}
        for index in (file.name for file in small if file.name.endswith(".safetensors.index.json")):
            shards = self._json(index).get("weight_map")
            named = set(shards.values()) if isinstance(shards, dict) and _all_text(shards) else None
            if named is None:
                raise ModelRefused(f"{index} of {self._place.model} has no weight_map")
            if named - here:
                shard = one_line(min(named - here), MAX_NAME_CHARS)
                raise ModelRefused(
                    f"{index} of {self._place.model} names {shard}, which is not there"
                )

    def _check_in_advance(
        self, digests: Mapping[str, str], weights: list[HubFile], expected_digest: bytes | None
    ) -> None:
        """Check the model digest before the weights come, if the hub lists all their SHA-256."""
        listed = {file.name: file.sha256 for file in weights if file.sha256 is not None}
        if len(listed) == len(weights):
            coming = manifest_digest(compose({**digests, **listed}))
            _check_digest(self._place.model, coming, expected_digest)

    def _json(self, name: str) -> dict[str, Any]:
        path = self._place.folder / name
        try:
            value = jsons.loads(path.read_bytes())  # bounded by `select`
        except ValueError as error:
            raise ModelRefused(f"{name} of {self._place.model} is not JSON: {error}") from None
        except OSError as error:
            raise ModelStoreError(f"cannot read {path}: {error.strerror}") from None
        if not isinstance(value, dict):
            raise ModelRefused(f"{name} of {self._place.model} is not a JSON object")
        return value


def _is_weights(file: HubFile) -> bool:
    return file.name.endswith(".safetensors")


def _all_text(mapping: dict[Any, Any]) -> bool:
    return all(isinstance(value, str) for value in mapping.values())


def _check_space(place: Revision, files: tuple[HubFile, ...], free: Callable[[Path], int]) -> None:
    missing = sum(file.size_bytes for file in files) - place.present_bytes(files)
    try:
        left = free(place.root)
    except OSError as error:
        raise ModelStoreError(
            f"cannot ask for the free space of {place.root}: {error.strerror}"
        ) from None
    if missing + SPARE_BYTES > left:
        raise ModelStoreError(
            f"{missing / 1e9:.1f} GB are still to come and the disk of {place.root} has "
            f"{left / 1e9:.1f} GB "
            f"left, of which {SPARE_BYTES / 1e9:.1f} GB stay free: make room, or choose another "
            "with --store"
        )


def _check_digest(model: ModelName, found: bytes | None, expected: bytes | None) -> None:
    if found is not None and expected is not None and found != expected:
        raise ModelRefused(
            f"{model} has the model digest 0x{found.hex()}, expected 0x{expected.hex()}"
        )
