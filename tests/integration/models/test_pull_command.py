"""`piecework models` as a person runs it: a process, a hub on loopback, kill -9 in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from piecework_model.checkpoint.manifest import MANIFEST_FILE, bundled_checkpoint_path, verify
from piecework_node import config
from piecework_node.daemon.engines import checkpoint_of
from tests.support.model.hub import TOKEN, FakeHub, Hold, Status, bundled_files, fake_hub
from tests.support.model.pulls import TINY, WEIGHTS, bundled_digest
from tests.support.system.commands import Said, piecework
from tests.unit.node.test_checks import NOWHERE

pytestmark = pytest.mark.process

NAME = TINY.repository
SIZE = (bundled_checkpoint_path() / WEIGHTS).stat().st_size
LINE_TIMEOUT_S = 30.0
DIGEST = "0x" + bundled_digest().hex()
PASSWORD = {"PIECEWORK_PASSWORD": "a password of the tests"}


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with fake_hub() as running:
        running.add(NAME, bundled_files())
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "models"


def written(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


async def models(hub: FakeHub, store: Path, *arguments: str, token: str = "") -> Said:
    environment = {"HF_ENDPOINT": hub.url, "PIECEWORK_MODELS": str(store), "HF_TOKEN": token}
    return await piecework("models", *arguments, environment=environment)


async def killed_at(hub: FakeHub, store: Path, least_bytes: int) -> None:
    """A pull that gets SIGKILL as soon as it says that it has so many bytes of the weights."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "piecework", "models", "pull", NAME),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HF_ENDPOINT": hub.url, "PIECEWORK_MODELS": str(store)},
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(LINE_TIMEOUT_S):
            received = 0
            while received < least_bytes:
                line = (await process.stderr.readline()).decode()
                assert line, "the pull ended by itself"
                if line.startswith(f"{WEIGHTS}: "):
                    received = int(line.split()[1])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL


async def test_a_pull_that_was_killed_goes_on_where_it_was(hub: FakeHub, store: Path) -> None:
    release = asyncio.Event()
    hub.fail("storage", WEIGHTS, Hold(SIZE * 3 // 4, release))
    await killed_at(hub, store, SIZE // 2)
    release.set()

    (listed,) = (await models(hub, store, "list", "--json")).json()["models"]
    assert (listed["complete"], listed["digest"]) == (False, None)
    assert SIZE // 2 < listed["present_bytes"] < listed["size_bytes"]

    said = (await models(hub, store, "pull", NAME, "--expect-digest", DIGEST, "--json")).json()
    assert (said["complete"], said["digest"], said["revisions"]) == (True, DIGEST, ["main"])
    first, second = hub.requests(WEIGHTS)
    offset = SIZE - second.sent
    assert first.range is None and second.range == f"bytes={offset}-"
    assert SIZE // 2 <= offset <= SIZE * 3 // 4
    assert (
        said["downloaded_bytes"] == SIZE - offset
    )  # the small files were whole, and were only read again
    assert verify(Path(said["folder"])) == bundled_digest()


async def test_killed_again_and_again_it_ends_with_every_byte_received_once(
    hub: FakeHub, store: Path
) -> None:
    release = asyncio.Event()
    for part in range(1, 4):
        hub.fail("storage", WEIGHTS, Hold(SIZE // 5, release))
        await killed_at(hub, store, SIZE * part // 10)
    release.set()
    said = (await models(hub, store, "pull", NAME, "--json")).json()
    assert said["digest"] == DIGEST
    offsets = [int((seen.range or "bytes=0-")[6:-1]) for seen in hub.requests(WEIGHTS)]
    assert offsets == sorted(offsets) and offsets[1] >= SIZE // 10 and offsets[-1] >= SIZE * 3 // 10


async def test_list_and_verify_say_what_is_here_and_a_flipped_byte_is_named(
    hub: FakeHub, store: Path
) -> None:
    assert (await models(hub, store, "list", "--json")).json() == {
        "store": str(store),
        "models": [],
    }
    pulled = (await models(hub, store, "pull", NAME, "--json")).json()
    (listed,) = (await models(hub, store, "list", "--json")).json()["models"]
    assert listed == {key: value for key, value in pulled.items() if key != "downloaded_bytes"}
    assert listed["size_bytes"] == sum(
        (bundled_checkpoint_path() / line[66:]).stat().st_size
        for line in (bundled_checkpoint_path() / MANIFEST_FILE).read_text().splitlines()
    )
    human = await models(hub, store, "list")
    assert NAME in human.out and DIGEST in human.out and "main" in human.out

    good = (await models(hub, store, "verify", NAME, "--json")).json()
    assert good == {"good": True, "folder": listed["folder"], "digest": DIGEST}

    weights = Path(listed["folder"]) / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[SIZE // 2] ^= 1
    weights.write_bytes(data)
    bad = await models(hub, store, "verify", NAME, "--json")
    assert bad.code == 1 and json.loads(bad.out)["path"] == str(weights)
    line = (await models(hub, store, "verify", listed["folder"])).line()
    assert line == f"{weights}: does not match {MANIFEST_FILE}"

    # The way out that the message names.
    hint = (await models(hub, store, "verify", NAME)).line()
    assert hint.endswith(f"Delete it and run: piecework models pull {NAME}")
    weights.unlink()
    await models(hub, store, "pull", NAME)
    assert (await models(hub, store, "verify", NAME, "--json")).json()["good"]


async def test_a_failure_is_one_line_and_leaves_what_arrived(hub: FakeHub, store: Path) -> None:
    hub.fail("storage", WEIGHTS, Status(429, {"Retry-After": "86400"}))
    said = await models(hub, store, "pull", NAME)
    assert (said.code, said.out) == (1, "")
    assert said.err.splitlines()[-1].startswith(
        f"error: {WEIGHTS}: 127.0.0.1 answered 429 and asks to wait"
    )
    human = await models(hub, store, "list")
    assert "incomplete" in human.out


async def test_a_disk_that_takes_no_more_is_one_line_and_the_pull_goes_on_later(
    hub: FakeHub, store: Path
) -> None:
    pull = f"{sys.executable} -P -m piecework models pull {NAME}"
    limited = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"ulimit -f 1024; exec {pull}"),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "HF_ENDPOINT": hub.url, "PIECEWORK_MODELS": str(store)},
    )
    _, complaints = await limited.communicate()
    last = complaints.decode().splitlines()[-1]
    assert limited.returncode == 1 and last.startswith("error: cannot write") and WEIGHTS in last
    said = (await models(hub, store, "pull", NAME, "--json")).json()
    assert (said["digest"], said["downloaded_bytes"]) == (DIGEST, SIZE - 2**20)


async def test_the_token_comes_from_the_environment_and_is_shown_nowhere(
    hub: FakeHub, store: Path
) -> None:
    hub.repositories[NAME].gated = True
    refused = await models(hub, store, "pull", NAME)
    assert refused.code == 1 and "set HF_TOKEN" in refused.err
    said = await models(hub, store, "pull", NAME, token=TOKEN)
    assert said.code == 0 and TOKEN not in said.out + said.err
    assert not [p for p in written(store) if TOKEN.encode() in p.read_bytes()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pull", "no-owner"), "owner/name"),
        (("pull", "a/../b"), "owner/name"),
        (("pull", NAME, "--revision", "../x"), "not a commit, tag or branch"),
        (("pull", NAME, "--endpoint", "ftp://hub"), "https://host"),
        (("pull", NAME, "--endpoint", "https://user:secret@hub"), "https://host"),
        (("verify", "example/other"), "piecework models pull example/other"),
        (("verify", "nowhere"), "nowhere"),
    ],
)
async def test_bad_arguments_are_answered_in_one_line(
    hub: FakeHub, store: Path, arguments: tuple[str, ...], words: str
) -> None:
    assert words in (await models(hub, store, *arguments)).line()


async def test_a_malformed_expected_digest_is_a_usage_error(hub: FakeHub, store: Path) -> None:
    said = await models(hub, store, "pull", NAME, "--expect-digest", "0x12")
    assert said.code == 2 and "64 hexadecimal digits" in said.err and not hub.seen


async def test_a_worker_is_set_up_with_a_model_by_its_name(
    hub: FakeHub, store: Path, tmp_path: Path
) -> None:
    NOWHERE.save(tmp_path / "deployment.json")
    made = await piecework(
        *(
            "worker",
            "init",
            "--home",
            str(tmp_path / "worker"),
            "--model",
            NAME,
            "--no-register",
            "--json",
        ),
        *("--deployment", str(tmp_path / "deployment.json")),
        *("--payout", "0x00000000000000000000000000000000000000f1"),
        environment={**PASSWORD, "PIECEWORK_MODELS": str(store)},
    )
    assert made.json()["home"] == str(tmp_path / "worker")
    pulled = (await models(hub, store, "pull", NAME, "--json")).json()
    # The settings say where the store is: the daemon's environment need not.
    assert checkpoint_of(config.load(tmp_path / "worker", {}, {})) == Path(pulled["folder"])


async def test_the_hub_of_these_tests_is_one_to_the_public_hubs_own_client(
    hub: FakeHub, tmp_path: Path
) -> None:
    """What holds the fake to the real interface: huggingface_hub resolves, lists and downloads from
    it."""
    program = (
        "import sys, huggingface_hub; "
        "huggingface_hub.snapshot_download(sys.argv[1], local_dir=sys.argv[2], "
        "allow_patterns=sys.argv[3:])"
    )
    names = sorted(
        line[66:] for line in (bundled_checkpoint_path() / MANIFEST_FILE).read_text().splitlines()
    )
    hub.page_entries = 4
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", program, NAME, str(tmp_path / "copy"), *names),
        env={
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path),
        },
        stderr=asyncio.subprocess.PIPE,
    )
    _, complaints = await process.communicate()
    assert process.returncode == 0 and b"Error while downloading" not in complaints, (
        complaints.decode()
    )
    shutil.copy(bundled_checkpoint_path() / MANIFEST_FILE, tmp_path / "copy")
    assert verify(tmp_path / "copy") == bundled_digest()
    assert hub.requests(WEIGHTS)[0].sent == SIZE


async def test_the_bench_asks_for_a_model_that_is_not_pulled(store: Path) -> None:
    said = await piecework("bench", "--model", NAME, environment={"PIECEWORK_MODELS": str(store)})
    assert f"Run: piecework models pull {NAME}" in said.line()
