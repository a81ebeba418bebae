"""The store: what a name means, what is complete, and how a worker gets from one to the other."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_node import config
from piecework_node.daemon.assembly import build
from piecework_node.daemon.engines import checkpoint_of
from piecework_node.errors import ConfigError, ModelNotPulled, ModelStoreError
from piecework_node.home import Home
from piecework_node.models.name import HubFile, ModelName, is_commit
from piecework_node.models.store import ModelStore, checkpoint_folder, default_store, is_model_name
from piecework_node.operations import registration as enrolment
from piecework_protocol.types import Timestamp
from tests.unit.node.test_checks import NOWHERE

PAYOUT = "0x" + "22" * 20
MODEL = ModelName("example", "model")
CONTENT = b"weights"
FILE = HubFile("model.safetensors", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def commit(number: int) -> str:
    return f"{number:040x}"


def put(store: ModelStore, number: int, *revisions: str, complete: bool = True) -> None:
    """A revision of one file, or what an interrupted pull leaves of it."""
    place = store.revision(MODEL, commit(number))
    with place.locked():
        place.begin("https://hub.example", (FILE,))
        if complete:
            (place.folder / FILE.name).write_bytes(CONTENT)
            place.finish({FILE.name: FILE.digest})
            for revision in revisions:
                store.point(MODEL.at(revision), commit(number))


# --- names


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("google/diffusiongemma-26B-A4B-it", ("google", "diffusiongemma-26B-A4B-it", "")),
        ("a/b@main", ("a", "b", "main")),
        ("a_1/b.c@refs/pr/7", ("a_1", "b.c", "refs/pr/7")),
        ("a/b@" + "0" * 40, ("a", "b", "0" * 40)),
    ],
)
def test_names_are_parsed_and_written_back(text: str, parts: tuple[str, str, str]) -> None:
    name = ModelName.parse(text)
    assert (name.owner, name.name, name.revision) == parts and str(name) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "a",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "a/.b",
            "a/b.",
            "a/b-",
            "-a/b",
            "a--b/c",
            "a/b..c",
        ),
        *(
            "a/b@",
            "a/b@../x",
            "a/b@x..y",
            "a/b@/x",
            "a/b@x/",
            "a/b@x//y",
            "a/b@x y",
            "a/b@x@y",
            "a/b@x~1",
        ),
        *("a/b\n", "a/b@x\n", "a/b\x00", "ä/b", "a\\b/c", "a/" + "b" * 97, "a/b@" + "x" * 81),
    ],
)
def test_what_could_leave_the_store_or_the_address_is_no_name(text: str) -> None:
    with pytest.raises(ConfigError):
        ModelName.parse(text)
    assert not is_model_name(text)


def test_only_whole_lower_case_ids_are_commits() -> None:
    assert is_commit("a1" * 20)
    assert not any(is_commit(text) for text in ("a1" * 19, "A1" * 20, "main", "a1" * 20 + "\n"))


# --- what a name means


def test_without_a_revision_it_is_the_default_branch_as_last_pulled(store: ModelStore) -> None:
    put(store, 1, "main")
    put(store, 2, "v2")
    assert store.find(MODEL).commit == commit(1)
    put(store, 3, "main")
    assert store.find(MODEL).commit == commit(3)
    assert store.find(MODEL.at(commit(1))).revisions == ()


def test_without_a_default_branch_it_is_the_only_complete_one(store: ModelStore) -> None:
    put(store, 1, "v1")
    put(store, 2, complete=False)
    assert store.find(MODEL).commit == commit(1)
    put(store, 3, "v3")
    with pytest.raises(ModelNotPulled, match="Name one"):
        store.find(MODEL)


def test_tags_branches_with_slashes_and_shortened_commits_are_found(store: ModelStore) -> None:
    put(store, 1, "v1", "refs/pr/1")
    for revision in ("v1", "refs/pr/1", commit(1), commit(1)[:7]):
        assert store.find(MODEL.at(revision)).commit == commit(1)
    put(store, 2, "v2")
    with pytest.raises(ModelNotPulled, match=commit(2)[:12]):
        store.find(MODEL.at(commit(1)[:7]))
    with pytest.raises(ModelNotPulled, match="piecework models pull example/model@v3"):
        store.find(MODEL.at("v3"))


def test_an_incomplete_model_is_not_used_and_its_pull_is_named(store: ModelStore) -> None:
    put(store, 1, complete=False)
    with pytest.raises(
        ModelNotPulled, match=f"not complete. Run: piecework models pull .* {store.root}"
    ):
        store.find(MODEL)
    with pytest.raises(ModelNotPulled, match=f"pull example/model@{commit(1)} "):
        store.find(MODEL.at(commit(1)[:9]))
    (pulled,) = store.all()
    assert (pulled.complete, pulled.present_bytes, pulled.size_bytes) == (False, 0, len(CONTENT))


def test_the_default_store_needs_no_option_in_the_command() -> None:
    with pytest.raises(ModelNotPulled) as caught:
        ModelStore(default_store()).find(MODEL.at("a-revision-that-nobody-has"))
    assert str(caught.value).endswith(
        "Run: piecework models pull example/model@a-revision-that-nobody-has"
    )


def test_a_file_of_another_size_makes_a_model_incomplete(store: ModelStore) -> None:
    put(store, 1, "main")
    (store.find(MODEL).folder / FILE.name).write_bytes(CONTENT[:-1])
    with pytest.raises(ModelNotPulled, match="not complete"):
        store.find(MODEL)


def test_a_new_default_branch_that_is_not_complete_leaves_the_old_one_in_use(
    store: ModelStore,
) -> None:
    put(store, 1, "main")
    put(store, 2, complete=False)
    assert store.find(MODEL).commit == commit(1)
    assert [pulled.complete for pulled in store.all()] == [True, False]


def test_a_pull_killed_before_its_record_is_no_entry(store: ModelStore) -> None:
    with store.revision(MODEL, commit(1)).locked():
        assert store.all() == ()


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 2}',
        b'{"format": 1, "files": [{"name": "../x"}]}',
        b"\xff",
        b"[" * 10**5,
    ],
    ids=["empty", "cut", "list", "format", "entry", "no text", "deep"],
)
def test_a_damaged_record_is_named_with_the_way_out(store: ModelStore, record: bytes) -> None:
    put(store, 1, "main")
    (path,) = store.root.rglob("source.json")
    path.write_bytes(record)
    with pytest.raises(ModelStoreError, match=r"source\.json"):
        store.all()


def test_folders_that_are_no_models_are_passed_over(store: ModelStore) -> None:
    put(store, 1, "main")
    (store.root / "example" / "model" / "notes").mkdir()
    (store.root / "lost+found" / "x").mkdir(parents=True)
    (store.root / "example" / "model" / "revisions" / ".main.new").write_text(commit(2))
    assert [pulled.commit for pulled in store.all()] == [commit(1)]


# --- from a setting to a folder


def test_a_path_is_a_path_and_a_name_a_name(store: ModelStore, tmp_path: Path) -> None:
    put(store, 1, "main")
    assert checkpoint_folder("example/model", store) == store.find(MODEL).folder
    assert checkpoint_folder("example/model@main", store) == store.find(MODEL).folder
    bundled = bundled_checkpoint_path()
    assert checkpoint_folder(str(bundled), store) == bundled
    assert checkpoint_folder("/nowhere", store) == Path("/nowhere")
    assert checkpoint_folder("./a/b", store) == Path("./a/b")
    with pytest.raises(ModelNotPulled, match="Run: piecework models pull example/other"):
        checkpoint_folder("example/other", store)


def test_the_store_of_a_worker_comes_from_its_settings_or_the_environment(
    store: ModelStore, tmp_path: Path
) -> None:
    put(store, 1, "main")
    file = tmp_path / "config.toml"
    file.write_text(f'payout = "{PAYOUT}"\nmodel = "example/model"\nmodel_store = "{store.root}"\n')
    assert checkpoint_of(config.load(tmp_path, {}, {})) == store.find(MODEL).folder
    file.write_text(f'payout = "{PAYOUT}"\nmodel = "example/model"\n')
    by_environment = config.load(tmp_path, {}, {"PIECEWORK_MODELS": str(store.root)})
    assert checkpoint_of(by_environment) == store.find(MODEL).folder
    own = {"PIECEWORK_MODELS": "/nowhere", "PIECEWORK_WORKER_MODEL_STORE": str(store.root)}
    assert checkpoint_of(config.load(tmp_path, {}, own)) == store.find(MODEL).folder


def test_without_a_model_it_is_the_bundled_one(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f'payout = "{PAYOUT}"\n')
    assert checkpoint_of(config.load(tmp_path, {}, {})) is None


async def test_a_worker_whose_model_is_not_pulled_starts_nothing_and_says_what_to_run(
    store: ModelStore, tmp_path: Path
) -> None:
    home = Home(tmp_path / "worker")
    values = {"payout": PAYOUT, "model": "example/model", "model_store": str(store.root)}
    enrolment.prepare_home(home, NOWHERE, values, "password", Timestamp(1_800_000_000))
    with pytest.raises(ModelNotPulled, match=f"pull example/model --store {store.root}$"):
        await build(home, config.load(home.root, {}, {}), "password")
