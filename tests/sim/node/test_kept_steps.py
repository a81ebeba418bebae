"""Steps of canvases that a worker keeps under a budget, and what it opens and exports with them."""

from __future__ import annotations

import json
import os
import resource
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from piecework_node import logs
from piecework_node.daemon.evidence import EvidenceWish, answer
from piecework_node.disputes.leaves import JournalLeaves
from piecework_node.evidence.expiry import EvidenceExpiry
from piecework_node.evidence.export import Exporter, NoEvidence
from piecework_node.evidence.steps import (
    MAX_WAITING,
    TURN_SHARE,
    SealingKeySource,
    StepStore,
)
from piecework_node.journal.records import StoredJob
from piecework_node.keys.sealing import SealingKeys
from piecework_protocol.disputes import CHALLENGE_SECONDS
from piecework_protocol.errors import MalformedInput
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import read_evidence, write_evidence
from piecework_protocol.limits import MAX_CANVAS_TOKENS, MAX_DENOISING_STEPS
from piecework_protocol.objects import Kind
from piecework_protocol.openings import (
    MAX_KEPT_BYTES,
    KeptCanvas,
    PackedRecords,
    pack_canvas,
    pack_records,
    read_openings,
    unpack_canvas,
)
from piecework_protocol.trace import CanvasRecord, EmbeddingType, StepRecord, leaf_of, soft_field
from piecework_protocol.types import JobId, PublicKey, Timestamp
from tests.sim.node.test_defence_leaves import challenge
from tests.support.node.fake_engine import FACTS
from tests.support.node.harness import (
    DOMAIN,
    EVIDENCE_S,
    OPERATOR,
    Client,
    JobStream,
    WorkerHarness,
)


async def served(folder: Path) -> tuple[WorkerHarness, Client, JobStream]:
    """A worker that keeps steps and has done a job of several canvases."""
    harness = WorkerHarness(steps_folder=folder)
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    line = client.job(3, 40)
    await client.submit(line)
    await client.finish(line)
    await store(harness).close()
    return harness, client, line


def store(harness: WorkerHarness) -> StepStore:
    assert harness.steps is not None
    return harness.steps


def only_job(harness: WorkerHarness) -> StoredJob:
    (job,) = harness.journal.jobs.values()
    assert len(job.canvases) > 1
    return job


def leaves_of(harness: WorkerHarness) -> JournalLeaves:
    return JournalLeaves(harness.journal, harness.cards, harness.keyring, DOMAIN, harness.steps)


async def test_every_leaf_opens_from_what_is_kept_on_any_engine_after_a_kill(
    tmp_path: Path,
) -> None:
    harness, _, _ = await served(tmp_path / "steps")
    (tmp_path / "steps" / "half.part").write_bytes(b"a file that a kill cut off")
    await harness.boot()
    harness.engine.known = replace(FACTS, profile="fake-gpu")
    job, leaves = only_job(harness), leaves_of(harness)
    for canvas, stored in enumerate(job.canvases):
        for leaf in range(len(stored.leaves)):
            opened = await leaves.open(challenge(job, canvas, leaf, 0x7F if leaf else 0x3F))
            fields = opened.fields if leaf else opened.fields[:6]
            assert leaf_of(fields) == stored.leaves[leaf]
    assert not harness.engine.replayed
    assert not (tmp_path / "steps" / "half.part").exists()
    last = job.submission.job.deadline
    assert await leaves.out_of_reach(Timestamp(last)) is None, "all of it is kept"


async def test_what_is_not_kept_is_replayed_and_told_when_the_engine_has_changed(
    tmp_path: Path,
) -> None:
    harness, _, _ = await served(tmp_path / "steps")
    job = only_job(harness)
    first = next(path for path in (tmp_path / "steps").iterdir() if path.stem.endswith("-0"))
    first.write_bytes(first.read_bytes()[:-1])
    leaves = leaves_of(harness)
    opened = await leaves.open(challenge(job, 0, 1, 0x7F))
    assert leaf_of(opened.fields) == job.canvases[0].leaves[1]
    assert len(harness.engine.replayed) == 1
    assert not first.exists(), "a file that does not open is let go of"
    harness.engine.known = replace(FACTS, profile="fake-gpu")
    told = await leaves.out_of_reach(Timestamp(int(harness.clock.now())))
    until = job.submission.job.deadline + CHALLENGE_SECONDS
    assert told is not None and told.startswith(f"1 jobs that may be challenged until {until} ran")


async def test_steps_that_an_engine_has_damaged_open_nothing(tmp_path: Path) -> None:
    harness, _, _ = await served(tmp_path / "steps")
    job, steps = only_job(harness), store(harness)
    kept = await steps.find(job.id, 0)
    assert kept is not None
    damaged = KeptCanvas(kept.canvas, PackedRecords(pack_records(kept.steps)[:-1]))
    steps.keep(job.id, job.submission.job.deadline, damaged)
    assert await steps.find(job.id, 0) is None, "it waits to be written"
    await steps.close()
    assert await steps.find(job.id, 0) is None


async def test_jobs_of_a_profile_that_no_card_has_are_told_as_far_as_nothing_is_kept(
    tmp_path: Path,
) -> None:
    harness = WorkerHarness(steps_folder=tmp_path / "steps", profiles=(FACTS.profile, "fake-gpu"))
    await harness.boot()
    client = Client(harness, deposit=10_000_000)
    client.open_on_chain()
    lines = [client.job(seed, 40, entry=entry) for seed, entry in ((3, 0), (4, 1), (5, 1))]
    for line in lines:
        await client.submit(line)
        await client.finish(line)
    await store(harness).close()
    for path in (tmp_path / "steps").iterdir():
        if lines[1].id.hex() not in path.name:
            path.unlink()
    await harness.boot()
    now = Timestamp(int(harness.clock.now()))
    assert await leaves_of(harness).out_of_reach(now) is None
    harness.engines[1].known = replace(FACTS, profile="fake-tpu")
    told = await leaves_of(harness).out_of_reach(now)
    assert told is not None and told.startswith("1 jobs ")
    assert told.endswith(f"ran on fake-gpu, and the engine is {FACTS.profile} and fake-tpu now")


async def test_the_files_hold_no_text_and_no_token_in_the_clear(tmp_path: Path) -> None:
    harness, _, _ = await served(tmp_path / "steps")
    kept = await store(harness).find(only_job(harness).id, 0)
    assert kept is not None
    for path in (tmp_path / "steps").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert kept.steps[0].before not in path.read_bytes()
    copied = StepStore(
        tmp_path / "steps",
        SealingKeys(()),
        DOMAIN,
        budget_bytes=2**20,
        window_s=0,
        clock=harness.clock,
        log=logs.silent(),
    )
    await copied.load()
    assert await copied.find(only_job(harness).id, 0) is None, "a copy of the files opens nothing"


async def test_the_oldest_canvases_go_when_the_budget_is_used_up(tmp_path: Path) -> None:
    harness, client, _ = await served(tmp_path / "steps")
    first, whole = only_job(harness), store(harness).usage
    assert whole.canvases == len(first.canvases) > 1
    assert whole.used_bytes == sum(p.stat().st_size for p in (tmp_path / "steps").iterdir())
    harness.evidence_bytes = whole.used_bytes
    await harness.boot()
    line = client.job(4, 40)
    await client.submit(line)
    await client.finish(line)
    await store(harness).close()
    usage = store(harness).usage
    assert 0 < usage.used_bytes <= usage.budget_bytes
    assert not any(store(harness).has(first.id, c) for c in range(len(first.canvases)))
    harness.evidence_bytes = usage.used_bytes - 1
    await harness.boot()
    assert store(harness).usage.canvases == usage.canvases - 1
    harness.evidence_bytes = 0
    await harness.boot()
    assert store(harness).usage.canvases == 0
    assert not [*(tmp_path / "steps").iterdir()]


async def test_steps_go_when_nobody_can_ask_for_them_any_more(tmp_path: Path) -> None:
    harness, _, _ = await served(tmp_path / "steps")
    store(harness).prune()
    assert store(harness).usage.canvases
    harness.clock.advance(3600 + EVIDENCE_S + 1)
    store(harness).prune()
    assert store(harness).usage == replace(store(harness).usage, canvases=0, used_bytes=0)
    assert not [*(tmp_path / "steps").iterdir()]


class SmallJournal:
    """Implements `PrunedJournal`: nothing of it is old."""

    async def prune(self, window_s: int) -> bool:
        return False


async def test_old_steps_stay_while_a_challenge_is_open(tmp_path: Path) -> None:
    harness, _, _ = await served(tmp_path / "steps")
    harness.clock.advance(3600 + EVIDENCE_S + 1)
    quiet = False
    expiry = EvidenceExpiry(
        SmallJournal(),
        store(harness),
        harness.keyring,
        window_s=EVIDENCE_S,
        quiet=lambda: quiet,
    )
    await expiry.step()
    assert store(harness).usage.canvases
    quiet = True
    await expiry.step()
    assert not store(harness).usage.canvases


async def test_a_cancelled_canvas_is_kept_too(tmp_path: Path) -> None:
    harness = WorkerHarness(steps_folder=tmp_path / "steps")
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    line = client.job(3, 40)
    await client.submit(line, drafts=True)
    (row,) = harness.engine.runnable()
    await harness.engine_step(row)
    while client.read(line):
        pass
    line.cancel()
    await client.finish(line)
    await store(harness).close()
    (job,) = harness.journal.jobs.values()
    (canvas,) = job.canvases
    kept = await store(harness).find(job.id, 0)
    assert kept is not None
    assert (kept.canvas.leaf(), *(s.leaf() for s in kept.steps)) == canvas.leaves


async def test_a_disk_that_fails_stops_no_job(tmp_path: Path) -> None:
    harness = WorkerHarness(steps_folder=tmp_path / "steps")
    await harness.boot()
    (tmp_path / "steps").rmdir()
    client = Client(harness)
    client.open_on_chain()
    line = client.job(3, 40)
    await client.submit(line)
    await client.finish(line)
    await store(harness).close()
    assert only_job(harness) and store(harness).usage.canvases == 0


async def test_a_slow_disk_does_not_use_up_the_memory(tmp_path: Path) -> None:
    harness, _, _ = await served(tmp_path / "steps")
    kept = await store(harness).find(only_job(harness).id, 0)
    assert kept is not None
    before = store(harness).usage.canvases
    for number in range(2 * MAX_WAITING):
        store(harness).keep(JobId(number.to_bytes(32, "big")), Timestamp(2**33), kept)
    await store(harness).close()
    assert store(harness).usage.canvases == before + MAX_WAITING


async def test_one_canvas_that_cannot_be_written_stops_no_other(tmp_path: Path) -> None:
    harness, _, _ = await served(tmp_path / "steps")
    small = await store(harness).find(only_job(harness).id, 0)
    assert small is not None
    before = store(harness).usage
    harness.evidence_bytes = before.used_bytes
    await harness.boot()
    large = KeptCanvas(small.canvas, PackedRecords(bytes(3) + b"\x01" + os.urandom(2**16)))
    for number, kept in enumerate((small, large, small)):
        store(harness).keep(JobId(number.to_bytes(32, "big")), Timestamp(2**33), kept)
    await store(harness).close()
    assert [store(harness).has(JobId(n.to_bytes(32, "big")), 0) for n in range(3)] == [
        True,
        False,
        True,
    ]


async def test_what_a_full_disk_takes_half_of_is_not_kept_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    harness, _, _ = await served(tmp_path / "steps")
    small = await store(harness).find(only_job(harness).id, 0)
    assert small is not None
    large = KeptCanvas(small.canvas, PackedRecords(bytes(3) + b"\x01" + os.urandom(2**19)))
    before = sorted((tmp_path / "steps").iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, limits[1]))
    try:
        store(harness).keep(JobId(bytes(32)), Timestamp(2**33), large)
        await store(harness).close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not store(harness).has(JobId(bytes(32)), 0)
    assert sorted((tmp_path / "steps").iterdir()) == before


class WatchedKeys:
    """The worker's keys. It looks at a folder each time that a canvas is sealed."""

    def __init__(self, keys: SealingKeySource, folder: Path) -> None:
        self._keys, self._folder = keys, folder
        self.seen: list[int] = []

    @property
    def current(self) -> PublicKey | None:
        self.seen.append(sum(path.stat().st_size for path in self._folder.iterdir()))
        return self._keys.current

    def open(self, sealed: bytes, context: bytes) -> bytes:
        return self._keys.open(sealed, context)


async def test_many_canvases_at_once_exceed_the_budget_by_a_part_of_it(tmp_path: Path) -> None:
    harness, _, _ = await served(tmp_path / "steps")
    small = await store(harness).find(only_job(harness).id, 0)
    assert small is not None
    size, budget, folder = 2**14, 2**18, tmp_path / "others"
    large = KeptCanvas(small.canvas, PackedRecords(bytes(3) + b"\x01" + os.urandom(size)))
    keys = WatchedKeys(harness.keyring, folder)
    kept = StepStore(
        folder,
        keys,
        DOMAIN,
        budget_bytes=budget,
        window_s=EVIDENCE_S,
        clock=harness.clock,
        log=logs.silent(),
    )
    await kept.load()
    for number in range(MAX_WAITING):
        kept.keep(JobId(number.to_bytes(32, "big")), Timestamp(2**33), large)
    await kept.close()
    assert len(keys.seen) == MAX_WAITING
    assert budget // 2 < max(keys.seen) <= budget + budget // TURN_SHARE + 2 * size
    assert kept.usage.used_bytes <= budget


async def test_what_waits_to_be_written_is_kept_already(tmp_path: Path) -> None:
    harness, _, _ = await served(tmp_path / "steps")
    kept = await store(harness).find(only_job(harness).id, 0)
    assert kept is not None
    store(harness).keep(JobId(bytes(32)), Timestamp(2**33), kept)
    assert store(harness).has(JobId(bytes(32)), 0)
    assert await store(harness).find(JobId(bytes(32)), 0) == kept


async def test_the_worker_exports_what_it_holds_and_says_what_it_lacks(tmp_path: Path) -> None:
    harness, _, line = await served(tmp_path / "steps")
    job = only_job(harness)
    exporter = Exporter(harness.journal, harness.keyring, DOMAIN, OPERATOR, store(harness))
    made = await exporter.export(job.id.hex()[:10], with_text=True)
    proven = check_evidence(read_evidence(write_evidence(made.file)))
    assert proven.content is not None and proven.outputs is None
    assert proven.paid == proven.traced == len(job.canvases)
    assert made.lacking == ("the outputs, which are sealed to the client",)
    assert [canvas.receipt for canvas in made.file.canvases] == line.receipts
    without = await exporter.export(job.id.hex(), with_text=False)
    assert without.file.content is None and without.lacking == ()
    del harness.journal.contents[job.id]
    (tmp_path / "steps").joinpath(next(iter((tmp_path / "steps").iterdir())).name).unlink()
    await harness.boot()
    again = Exporter(harness.journal, harness.keyring, DOMAIN, OPERATOR, store(harness))
    poorer = await again.export("0x" + job.id.hex(), with_text=True)
    assert poorer.file.content is None
    assert any(line.startswith("the prompt, which is not kept") for line in poorer.lacking)
    assert any(line.startswith("the steps of canvas") for line in poorer.lacking)
    for digits, why in (("", "hex digits"), ("xyz", "hex digits"), ("0" * 65, "hex digits")):
        with pytest.raises(NoEvidence, match=why):
            await exporter.export(digits, with_text=False)
    with pytest.raises(NoEvidence, match="does not have"):
        await exporter.export("00" * 32, with_text=False)


async def test_the_kept_steps_of_a_canvas_are_an_openings_file(tmp_path: Path) -> None:
    harness, _, _ = await served(tmp_path / "steps")
    job = only_job(harness)
    exporter = Exporter(harness.journal, harness.keyring, DOMAIN, OPERATOR, store(harness))
    shown = await answer(exporter, store(harness), EvidenceWish(job.id.hex(), 1))
    opened = read_openings(json.dumps(shown["openings"]).encode())
    assert opened.canvas is not None and opened.canvas.leaf() == job.canvases[1].leaves[0]
    assert [leaf_of(step.fields) for step in opened.steps] == [*job.canvases[1].leaves[1:]]
    with pytest.raises(NoEvidence, match="not kept"):
        await exporter.openings(job.id.hex(), 99)
    shown = await answer(exporter, store(harness), EvidenceWish())
    assert shown["kept"]["canvases"] == len(job.canvases)


@pytest.mark.parametrize("body", [b"[]", b'{"job": 1}', b'{"canvas": "0"}', b"{", b'{"canvas":-1}'])
def test_another_question_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        EvidenceWish.parse(body)


def test_the_largest_canvas_has_room_and_a_larger_one_is_refused() -> None:
    size = MAX_CANVAS_TOKENS
    step = StepRecord(
        0,
        0,
        *(bytes(4 * size),) * 3,
        bytes(size // 8),
        soft_field(EmbeddingType.FLOAT32, b""),
        bytes(6 * size),
    )
    record = CanvasRecord(0, size, 2**18, Kind.TEXT, 1, *(bytes(32),) * 3, 5)
    whole = KeptCanvas(record, tuple(replace(step, step=i) for i in range(MAX_DENOISING_STEPS)))
    assert unpack_canvas(pack_canvas(whole)) == whole
    packed = pack_canvas(whole)
    assert len(pack_records(whole.steps)) < MAX_KEPT_BYTES
    for data in (zlib.compress(bytes(MAX_KEPT_BYTES + 1)), b"", b"no zlib", packed[:-9]):
        with pytest.raises(MalformedInput, match="kept canvas"):
            unpack_canvas(data)
