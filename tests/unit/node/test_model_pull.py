"""Pulling a model: what is downloaded and what never is, every way in which it breaks, and what is
left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from piecework_model.checkpoint.manifest import MANIFEST_FILE, bundled_checkpoint_path, verify
from piecework_node.errors import (
    HubError,
    HubRefusal,
    ModelNotPulled,
    ModelRefused,
    ModelStoreError,
)
from piecework_node.models.name import HubFile, ModelName
from piecework_node.models.pull import SPARE_BYTES
from piecework_node.models.retries import RetryPolicy
from piecework_node.models.store import ModelStore
from tests.support.model.hub import (
    STRANGER,
    TOKEN,
    Cut,
    Damaged,
    FakeHub,
    Fault,
    Hold,
    NoRanges,
    Redirect,
    Short,
    Status,
    Unannounced,
    WrongRange,
    bundled_files,
    fake_hub,
    git_blob_id,
)
from tests.support.model.pulls import TINY, WEIGHTS, Told, bundled_digest, pull_tiny

SIZE = (bundled_checkpoint_path() / WEIGHTS).stat().st_size
MIDDLE = SIZE // 2


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    """A hub that serves the bundled checkpoint."""
    async with fake_hub() as running:
        running.add(TINY.repository, bundled_files())
        yield running


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def with_json(name: str, **changes: object) -> dict[str, bytes]:
    files = bundled_files()
    return {**files, name: json.dumps({**json.loads(files[name]), **changes}).encode()}


def kept(store: ModelStore) -> int:
    """Bytes of weights that are in partial files."""
    return sum(p.stat().st_size for p in store.root.rglob(f"{WEIGHTS}.*") if p.is_file())


# --- what a pull is


async def test_a_pulled_model_has_the_digest_that_its_publisher_computes(
    hub: FakeHub, store: ModelStore
) -> None:
    received = await pull_tiny(hub, store)
    pulled = received.pulled
    assert pulled.complete and pulled.digest == bundled_digest() == verify(pulled.folder)
    assert (pulled.folder / MANIFEST_FILE).read_text() == (
        bundled_checkpoint_path() / MANIFEST_FILE
    ).read_text()
    assert received.downloaded_bytes == pulled.size_bytes == pulled.present_bytes


async def test_only_files_of_the_format_are_asked_for_and_kept(
    hub: FakeHub, store: ModelStore
) -> None:
    pulled = (await pull_tiny(hub, store)).pulled
    expected = {line[66:] for line in (pulled.folder / MANIFEST_FILE).read_text().splitlines()}
    assert {p.name for p in pulled.folder.iterdir()} == expected | {MANIFEST_FILE}
    asked = {seen.path.rpartition("/")[2] for seen in hub.seen if "/resolve/" in seen.path}
    assert asked == expected


async def test_the_revision_is_pinned_to_a_commit_before_anything_is_downloaded(
    hub: FakeHub, store: ModelStore
) -> None:
    old = hub.repositories[TINY.repository].refs["main"]
    hub.repositories[TINY.repository].refs["v1"] = old
    hub.add(TINY.repository, with_json("generation_config.json", max_denoising_steps=7))
    pulled = (await pull_tiny(hub, store, model=TINY.at("v1"))).pulled
    assert (pulled.commit, pulled.revisions, pulled.digest) == (old, ("v1",), bundled_digest())
    assert all(f"/{old}/" in seen.path for seen in hub.seen if "/resolve/" in seen.path)


async def test_a_branch_that_moved_is_pulled_beside_the_old_commit(
    hub: FakeHub, store: ModelStore
) -> None:
    first = (await pull_tiny(hub, store)).pulled
    hub.add(TINY.repository, with_json("generation_config.json", max_denoising_steps=7))
    second = (await pull_tiny(hub, store)).pulled
    assert second.digest != first.digest == verify(first.folder)
    assert store.find(TINY).commit == second.commit
    assert store.find(TINY.at(first.commit[:8])).digest == first.digest


async def test_a_complete_model_is_not_downloaded_again(hub: FakeHub, store: ModelStore) -> None:
    await pull_tiny(hub, store)
    before = len(hub.seen)
    again = await pull_tiny(hub, store)
    assert again.downloaded_bytes == 0 and again.pulled.complete
    assert [seen.path.split("/")[5] for seen in hub.seen[before:]] == ["revision", "tree"]


async def test_a_file_that_was_deleted_is_the_only_one_downloaded_again(
    hub: FakeHub, store: ModelStore
) -> None:
    pulled = (await pull_tiny(hub, store)).pulled
    (pulled.folder / "tokenizer.json").unlink()
    again = await pull_tiny(hub, store)
    assert again.downloaded_bytes == len(bundled_files()["tokenizer.json"])
    assert verify(again.pulled.folder) == bundled_digest()


async def test_a_damaged_file_of_an_incomplete_model_is_downloaded_again(
    hub: FakeHub, store: ModelStore
) -> None:
    pulled = (await pull_tiny(hub, store)).pulled
    weights = pulled.folder / WEIGHTS
    weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])
    (pulled.folder / MANIFEST_FILE).unlink()
    hub.fail("storage", WEIGHTS, *[Status(503)] * 7)
    with pytest.raises(HubError, match="Gave up"):
        await pull_tiny(hub, store)
    assert not weights.exists()  # it is of no use, and takes the room that the new one needs
    again = await pull_tiny(hub, store)
    assert again.downloaded_bytes == SIZE and verify(again.pulled.folder) == bundled_digest()


async def test_shards_and_long_listings_are_pulled_whole(hub: FakeHub, store: ModelStore) -> None:
    shards = {f"model-{i:05}-of-00012.safetensors": bytes([i]) * (1000 + i) for i in range(1, 13)}
    index = {"weight_map": {f"layer.{i}": name for i, name in enumerate(shards)}}
    files = {
        **bundled_files(),
        **shards,
        "model.safetensors.index.json": json.dumps(index).encode(),
    }
    hub.add(TINY.repository, files)
    hub.page_entries = 3
    pulled = (await pull_tiny(hub, store)).pulled
    assert pulled.files == 6 + 13 and pulled.digest == verify(pulled.folder)
    assert len([seen for seen in hub.seen if "/tree/" in seen.path]) > 5


# --- what is refused, and when


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (with_json("config.json", model_type="gemma4"), "is a 'gemma4', not a diffusion_gemma"),
        (with_json("config.json", model_type=None), "not a diffusion_gemma"),
        ({**bundled_files(), "config.json": b"[]"}, "config.json .* not a JSON object"),
        ({**bundled_files(), "config.json": b"{"}, "config.json .* not JSON"),
        ({**bundled_files(), "config.json": b"[" * 100_000}, "config.json .* not JSON"),
        (
            with_json("config.json", auto_map={"AutoModel": "modeling.Evil"}),
            "config.json .* remote code",
        ),
        (with_json("tokenizer_config.json", auto_map={}), "tokenizer_config.json .* remote code"),
        (
            {k: v for k, v in bundled_files().items() if k != "tokenizer.json"},
            "it has no tokenizer.json",
        ),
        ({k: v for k, v in bundled_files().items() if k != WEIGHTS}, r"no \.safetensors file"),
        ({**bundled_files(), "model.safetensors.index.json": b"{}"}, "has no weight_map"),
        (
            {
                **bundled_files(),
                "model.safetensors.index.json": b'{"weight_map": {"a": "b.safetensors"}}',
            },
            "names b.safetensors, which is not there",
        ),
        ({**bundled_files(), ".hidden.safetensors": b""}, "a name that no checkpoint needs"),
        ({**bundled_files(), "tokenizer x.json": b"{}"}, "a name that no checkpoint needs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_is_no_checkpoint_is_refused_before_its_weights(
    hub: FakeHub, store: ModelStore, files: dict[str, bytes], words: str
) -> None:
    hub.add(TINY.repository, files)
    with pytest.raises(ModelRefused, match=words):
        await pull_tiny(hub, store)
    assert not [
        seen for seen in hub.seen if "safetensors" in seen.path and "index" not in seen.path
    ]
    with pytest.raises(ModelNotPulled, match="piecework models pull"):
        store.find(TINY)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("tokenizer.json", 64 * 2**20 + 1, "at most 67108864 are read"),
        (WEIGHTS, 512 * 2**30, "are accepted"),
    ],
)
async def test_oversized_files_are_refused_by_the_listing(
    hub: FakeHub, store: ModelStore, name: str, size: int, words: str
) -> None:
    large = {"lfs": {"size": size, "oid": "a" * 64}} if name == WEIGHTS else {"size": size}
    hub.repositories[TINY.repository].listed[name] = large
    with pytest.raises(ModelRefused, match=words):
        await pull_tiny(hub, store)
    assert not hub.requests("config.json", "hub")


async def test_another_digest_than_expected_is_refused_before_the_weights(
    hub: FakeHub, store: ModelStore
) -> None:
    with pytest.raises(ModelRefused, match=f"0x{bundled_digest().hex()}, expected 0x0101"):
        await pull_tiny(hub, store, expected_digest=b"\x01" * 32)
    assert not hub.requests(WEIGHTS)
    assert (await pull_tiny(hub, store, expected_digest=bundled_digest())).pulled.complete
    with pytest.raises(ModelRefused, match="expected"):
        await pull_tiny(hub, store, expected_digest=b"\x01" * 32)


async def test_where_the_weights_digest_is_not_listed_the_expectation_is_checked_after_them(
    hub: FakeHub, store: ModelStore
) -> None:
    repository = hub.repositories[TINY.repository]
    repository.listed[WEIGHTS] = {"lfs": None, "oid": git_blob_id(bundled_files()[WEIGHTS])}
    cached = f"/api/resolve-cache/models/{TINY.repository}/{repository.refs['main']}/{WEIGHTS}"
    hub.fail("hub", WEIGHTS, Redirect(cached))
    with pytest.raises(ModelRefused, match="expected"):
        await pull_tiny(hub, store, expected_digest=b"\x01" * 32)
    with pytest.raises(ModelNotPulled, match="not complete"):
        store.find(TINY)
    assert (await pull_tiny(hub, store, expected_digest=bundled_digest())).downloaded_bytes == 0


async def test_a_full_disk_is_noticed_before_the_download(hub: FakeHub, store: ModelStore) -> None:
    total = (
        sum(len(bundled_files()[name]) for name in bundled_files() if name[0] not in ".mpR") + SIZE
    )
    with pytest.raises(ModelStoreError, match=r"make room, or choose another with --store"):
        await pull_tiny(hub, store, free=lambda _: total + SPARE_BYTES - 1)
    assert not [seen for seen in hub.seen if "/resolve/" in seen.path]
    assert (await pull_tiny(hub, store, free=lambda _: total + SPARE_BYTES)).pulled.complete


async def test_what_is_there_already_needs_no_room(hub: FakeHub, store: ModelStore) -> None:
    hub.fail("storage", WEIGHTS, *[Cut(MIDDLE)] + [Status(503)] * 7)
    with pytest.raises(HubError, match="Gave up"):
        await pull_tiny(hub, store)
    rest = SIZE - kept(store)
    assert 0 < rest < SIZE
    with pytest.raises(ModelStoreError, match="make room"):
        await pull_tiny(hub, store, free=lambda _: rest + SPARE_BYTES - 1)
    assert (await pull_tiny(hub, store, free=lambda _: rest + SPARE_BYTES)).downloaded_bytes == rest


async def test_two_pulls_of_one_model_do_not_meet(hub: FakeHub, store: ModelStore) -> None:
    release = asyncio.Event()
    hub.fail("storage", WEIGHTS, Hold(MIDDLE, release))
    told = Told()
    first = asyncio.create_task(pull_tiny(hub, store, told=told))
    await asyncio.wait_for(told.has_received(WEIGHTS, 1), 10)
    with pytest.raises(ModelStoreError, match="another process is pulling"):
        await pull_tiny(hub, store)
    release.set()
    assert (await first).pulled.complete


# --- access


async def test_a_gated_model_without_a_token_says_what_to_do(
    hub: FakeHub, store: ModelStore
) -> None:
    hub.repositories[TINY.repository].gated = True
    with pytest.raises(
        HubRefusal, match=f"Accept its terms at {hub.url}/{TINY.repository}.*HF_TOKEN"
    ):
        await pull_tiny(hub, store)
    assert (await pull_tiny(hub, store, token=TOKEN)).pulled.complete


async def test_an_account_without_access_is_told_to_ask_for_it(
    hub: FakeHub, store: ModelStore
) -> None:
    hub.repositories[TINY.repository].gated = True
    with pytest.raises(HubRefusal, match=r"has no access to .* Accept its terms"):
        await pull_tiny(hub, store, token=STRANGER)


async def test_a_token_that_the_hub_does_not_know_is_named_as_the_cause(
    hub: FakeHub, store: ModelStore
) -> None:
    with pytest.raises(HubRefusal, match="does not accept your HF_TOKEN") as caught:
        await pull_tiny(hub, store, token="hf_mistyped")
    assert "hf_mistyped" not in str(caught.value)


async def test_a_token_without_the_permission_is_told_apart(
    hub: FakeHub, store: ModelStore
) -> None:
    hub.fail("hub", "config.json", Status(403))
    with pytest.raises(HubRefusal, match="fine-grained token"):
        await pull_tiny(hub, store, token=TOKEN)


async def test_the_token_goes_to_the_hub_and_never_to_the_storage_host(
    hub: FakeHub, store: ModelStore
) -> None:
    await pull_tiny(hub, store, token=TOKEN)
    carried = {(seen.host, seen.authorization) for seen in hub.seen}
    assert carried == {("hub", f"Bearer {TOKEN}"), ("cache", f"Bearer {TOKEN}"), ("storage", None)}


async def test_unknown_models_and_revisions_are_refused_by_name(
    hub: FakeHub, store: ModelStore
) -> None:
    with pytest.raises(HubRefusal, match="there is no model example/other"):
        await pull_tiny(hub, store, model=ModelName("example", "other"), token=TOKEN)
    with pytest.raises(HubRefusal, match="example/other is gated, private, or does not exist"):
        await pull_tiny(hub, store, model=ModelName("example", "other"))
    with pytest.raises(HubRefusal, match="has no commit, tag or branch v9"):
        await pull_tiny(hub, store, model=TINY.at("v9"))


async def test_a_file_that_is_listed_and_not_there_is_the_hubs_word(
    hub: FakeHub, store: ModelStore
) -> None:
    hub.fail("hub", WEIGHTS, Status(404, {"X-Error-Code": "EntryNotFound"}))
    with pytest.raises(HubRefusal, match=r"lists in .* is not there"):
        await pull_tiny(hub, store)


# --- failures that pass


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Cut(0), WEIGHTS),
        (Cut(MIDDLE), WEIGHTS),
        (Cut(SIZE - 1), WEIGHTS),
        (Short(1), f"announces {SIZE - 1} bytes where {SIZE} are listed"),
        (Unannounced(1000), f"ended after {SIZE - 1000} of {SIZE} bytes"),
        (Status(500), "answered 500"),
        (Status(503), "answered 503"),
        (Status(429), "answered 429"),
        (Status(403), "answered 403"),  # a signed address that expired
    ],
    ids=repr,
)
async def test_a_transfer_that_breaks_is_taken_up_again(
    hub: FakeHub, store: ModelStore, fault: Fault, reason: str
) -> None:
    hub.fail("storage", WEIGHTS, fault)
    told = Told()
    received = await pull_tiny(hub, store, told=told)
    assert verify(received.pulled.folder) == bundled_digest()
    assert len(told.reasons) == 1 and reason in told.reasons[0]
    assert told.pauses == [1.0]
    assert received.downloaded_bytes == received.pulled.size_bytes  # no byte twice
    first, second = hub.requests(WEIGHTS)
    offset = SIZE - second.sent
    assert first.range is None and second.range == (f"bytes={offset}-" if offset else None)
    assert offset <= first.sent


async def test_every_attempt_asks_the_hub_for_a_new_address(
    hub: FakeHub, store: ModelStore
) -> None:
    hub.fail("storage", WEIGHTS, Cut(MIDDLE), Status(403), Status(403))
    await pull_tiny(hub, store)
    assert len(hub.requests(WEIGHTS, "hub")) == len(hub.requests(WEIGHTS)) == 4


async def test_a_body_without_a_length_is_taken(hub: FakeHub, store: ModelStore) -> None:
    hub.fail("storage", WEIGHTS, Unannounced())
    told = Told()
    assert (await pull_tiny(hub, store, told=told)).pulled.complete and not told.reasons


async def test_a_server_without_ranges_sends_everything_again(
    hub: FakeHub, store: ModelStore
) -> None:
    hub.fail("storage", WEIGHTS, Cut(MIDDLE), NoRanges())
    told = Told()
    received = await pull_tiny(hub, store, told=told)
    assert verify(received.pulled.folder) == bundled_digest()
    assert hub.requests(WEIGHTS)[1].range is not None and hub.requests(WEIGHTS)[1].sent == SIZE
    assert received.downloaded_bytes > received.pulled.size_bytes


async def test_another_range_than_asked_for_is_never_appended(
    hub: FakeHub, store: ModelStore
) -> None:
    hub.fail("storage", WEIGHTS, Cut(MIDDLE), WrongRange(10))
    told = Told()
    assert verify((await pull_tiny(hub, store, told=told)).pulled.folder) == bundled_digest()
    assert "another range" in told.reasons[1]
    assert hub.requests(WEIGHTS)[2].range is None


async def test_a_range_that_the_server_no_longer_has_starts_again(
    hub: FakeHub, store: ModelStore
) -> None:
    hub.fail("storage", WEIGHTS, Cut(MIDDLE), Status(416))
    assert verify((await pull_tiny(hub, store)).pulled.folder) == bundled_digest()
    assert hub.requests(WEIGHTS)[2].range is None


async def test_a_server_that_falls_silent_is_left(hub: FakeHub, store: ModelStore) -> None:
    release = asyncio.Event()
    hub.fail("storage", WEIGHTS, Hold(MIDDLE, release))
    told = Told()
    received = await pull_tiny(hub, store, told=told, policy=RetryPolicy(read_s=0.2))
    release.set()
    assert verify(received.pulled.folder) == bundled_digest() and len(told.reasons) == 1


async def test_retry_after_is_obeyed(hub: FakeHub, store: ModelStore) -> None:
    limited = {"RateLimit": '"resolvers";r=0;t=55'}
    dated = {
        "Date": "Wed, 21 Oct 2026 07:28:00 GMT",
        "Retry-After": "Wed, 21 Oct 2026 07:29:30 GMT",
    }
    hub.fail("hub", "revision", Status(429, {"Retry-After": "40"}))
    hub.fail("hub", "tree", Status(429, limited))
    hub.fail("storage", WEIGHTS, Status(503, dated), Status(503, {"Retry-After": "soon"}))
    told = Told()
    await pull_tiny(hub, store, told=told)
    assert told.pauses == [40.0, 55.0, 90.0, 2.0]


async def test_a_pause_that_nobody_would_wait_for_is_an_error(
    hub: FakeHub, store: ModelStore
) -> None:
    hub.fail("storage", WEIGHTS, Status(429, {"Retry-After": "86400"}))
    told = Told()
    with pytest.raises(HubError, match="asks to wait 86400 s"):
        await pull_tiny(hub, store, told=told)
    assert not told.pauses


async def test_attempts_in_vain_end_with_the_last_reason(hub: FakeHub, store: ModelStore) -> None:
    hub.fail("storage", WEIGHTS, *[Status(502)] * 100)
    told = Told()
    with pytest.raises(HubError, match=r"answered 502\. Gave up after 7 attempts"):
        await pull_tiny(hub, store, told=told)
    assert told.pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert len(hub.requests(WEIGHTS)) == 7


async def test_attempts_that_bring_much_are_not_counted(hub: FakeHub, store: ModelStore) -> None:
    files = {**bundled_files(), "model.safetensors": bytes(12 * 2**20)}
    hub.add(TINY.repository, files)
    hub.fail("storage", WEIGHTS, *[Cut(3 * 2**19)] * 7)
    told = Told()
    assert (await pull_tiny(hub, store, told=told)).downloaded_bytes > 12 * 2**20
    assert told.pauses == [1.0] * 7


async def test_a_hub_that_is_not_there_is_given_up(store: ModelStore) -> None:
    nobody, told = FakeHub(), Told()
    nobody.url = "http://127.0.0.1:9"
    with pytest.raises(HubError, match=r"127\.0\.0\.1.*Gave up"):
        await pull_tiny(nobody, store, told=told)
    assert len(told.pauses) == 6


# --- content that is not what was listed


async def test_a_flipped_byte_on_the_way_is_named_and_not_kept(
    hub: FakeHub, store: ModelStore
) -> None:
    hub.fail("storage", WEIGHTS, Damaged(MIDDLE))
    with pytest.raises(HubError, match=f"{WEIGHTS} is not what the hub lists"):
        await pull_tiny(hub, store)
    assert kept(store) == 0
    assert (await pull_tiny(hub, store)).pulled.digest == bundled_digest()


async def test_a_flipped_byte_in_a_small_file_is_named_too(hub: FakeHub, store: ModelStore) -> None:
    hub.fail("cache", "tokenizer.json", Damaged(17))
    with pytest.raises(HubError, match=r"tokenizer\.json is not what the hub lists"):
        await pull_tiny(hub, store)


async def test_pieces_that_do_not_fit_together_are_downloaded_once_more(
    hub: FakeHub, store: ModelStore
) -> None:
    hub.fail("storage", WEIGHTS, Cut(MIDDLE), Damaged(SIZE - 1))
    assert verify((await pull_tiny(hub, store)).pulled.folder) == bundled_digest()
    assert hub.requests(WEIGHTS)[2].range is None
    hub.add(TINY.repository, with_json("generation_config.json", max_denoising_steps=7))
    hub.fail("storage", WEIGHTS, Cut(MIDDLE), Damaged(SIZE - 1), Damaged(0))
    with pytest.raises(HubError, match="is not what the hub lists"):
        await pull_tiny(hub, store)


async def test_more_bytes_than_listed_are_refused(hub: FakeHub, store: ModelStore) -> None:
    hub.fail("storage", WEIGHTS, Unannounced(-1))
    with pytest.raises(HubError, match=f"more than the {SIZE} bytes listed"):
        await pull_tiny(hub, store)


async def test_a_partial_file_longer_than_the_whole_starts_again(
    hub: FakeHub, store: ModelStore
) -> None:
    hub.fail("storage", WEIGHTS, *[Cut(MIDDLE)] + [Status(503)] * 7)
    with pytest.raises(HubError):
        await pull_tiny(hub, store)
    (partial,) = store.root.rglob(f"{WEIGHTS}.*")
    partial.write_bytes(bytes(SIZE + 1))
    assert (await pull_tiny(hub, store)).pulled.digest == bundled_digest()


async def test_a_partial_file_of_another_content_is_not_continued_and_goes(
    hub: FakeHub, store: ModelStore
) -> None:
    commit = hub.repositories[TINY.repository].refs["main"]
    other = store.revision(TINY, commit).partial(HubFile(WEIGHTS, SIZE, "a" * 64))
    other.parent.mkdir(parents=True)
    other.write_bytes(bytes(MIDDLE))
    assert (await pull_tiny(hub, store)).pulled.digest == bundled_digest()
    assert [seen.range for seen in hub.requests(WEIGHTS)] == [None]
    assert not list(other.parent.iterdir())


async def test_a_store_that_is_no_folder_is_said(hub: FakeHub, store: ModelStore) -> None:
    store.root.parent.mkdir(exist_ok=True)
    store.root.write_text("a file where the store should be")
    with pytest.raises(ModelStoreError, match="models"):
        await pull_tiny(hub, store)
