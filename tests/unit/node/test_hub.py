"""What a hub may answer, and what is made of answers that are none."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from piecework_node.errors import ConfigError, HubError
from piecework_node.keys.tls import create_tls
from piecework_node.models.hub import MAX_ANSWER_BYTES, Hub, parse_endpoint, redirect_target
from piecework_node.models.name import HubFile
from piecework_node.models.retries import RetryableError, RetryPolicy
from piecework_protocol.types import Address, Timestamp
from tests.support.model.hub import (
    FakeHub,
    Fault,
    Hold,
    HubAnswer,
    Redirect,
    Status,
    fake_hub,
    git_blob_id,
)
from tests.support.model.pulls import IMPATIENT, TINY, WEIGHTS, Told

SMALL = {"config.json": b"{}", "README.md": b"", WEIGHTS: b"0123456789"}


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with fake_hub() as running:
        running.add(TINY.repository, SMALL)
        yield running


@asynccontextmanager
async def connected(hub: FakeHub, token: str = "") -> AsyncIterator[Hub]:
    told = Told()
    async with Hub.connect(
        hub.url, token, on_wait=told.on_wait, policy=IMPATIENT, sleep=told.sleep
    ) as client:
        yield client


async def listed(hub: FakeHub) -> tuple[HubFile, ...]:
    async with connected(hub) as client:
        return await client.files(TINY, await client.commit(TINY))


async def read(hub: FakeHub, name: str, offset: int = 0) -> tuple[int, bytes]:
    """Where the body of one attempt begins, and the body."""
    async with connected(hub) as client:
        commit = await client.commit(TINY)
        (file,) = (f for f in await client.files(TINY, commit) if f.name == name)
        async with client.open(TINY, commit, file, offset) as body:
            return body.offset, b"".join([chunk async for chunk in body.chunks])


async def test_files_are_listed_with_the_digest_that_the_hub_has(hub: FakeHub) -> None:
    hub.page_entries = 1
    files = {file.name: file for file in await listed(hub)}
    assert files["config.json"] == HubFile("config.json", 2, git_blob_id(b"{}"))
    assert files["config.json"].sha256 is None and files[WEIGHTS].sha256 == files[WEIGHTS].digest
    assert set(files) == set(SMALL)  # and no folder


async def test_a_body_is_read_from_an_offset(hub: FakeHub) -> None:
    assert await read(hub, WEIGHTS) == (0, b"0123456789")
    assert await read(hub, WEIGHTS, 7) == (7, b"789")
    assert await read(hub, "config.json", 1) == (1, b"}")


async def test_a_branch_with_a_slash_is_one_part_of_the_address(hub: FakeHub) -> None:
    commit = hub.repositories[TINY.repository].commit(SMALL, "refs/pr/1")
    async with connected(hub) as client:
        assert await client.commit(TINY.at("refs/pr/1")) == commit


@pytest.mark.parametrize(
    "path",
    [
        *(
            "../model.safetensors",
            "..",
            "/etc/passwd",
            "a/model.safetensors",
            "a\\model.safetensors",
            "",
        ),
        *(
            "model.safetensors\n",
            "\x1b[2Jmodel.safetensors",
            "a\x00.safetensors",
            "\u202emodel.safetensors",
        ),
    ],
    ids=ascii,
)
async def test_names_that_lead_elsewhere_are_refused(hub: FakeHub, path: str) -> None:
    entry = {"type": "file", "path": path, "size": 1, "oid": "a" * 40}
    hub.repositories[TINY.repository].extra_entries = [entry]
    with pytest.raises(HubError, match="leads elsewhere") as caught:
        await listed(hub)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("no object", "without a name"),
        ({"type": "file", "size": 1, "oid": "a" * 40}, "without a name"),
        ({"type": "file", "path": ["x"], "size": 1, "oid": "a" * 40}, "without a name"),
        ({"type": "file", "path": "x", "oid": "a" * 40}, "without a size"),
        ({"type": "file", "path": "x", "size": -1, "oid": "a" * 40}, "without a size"),
        ({"type": "file", "path": "x", "size": True, "oid": "a" * 40}, "without a size"),
        ({"type": "file", "path": "x", "size": 2**60, "oid": "a" * 40}, "without a size"),
        ({"type": "file", "path": "x", "size": 1}, "without a digest"),
        ({"type": "file", "path": "x", "size": 1, "oid": "../../x" + "a" * 33}, "without a digest"),
        ({"type": "file", "path": "x", "size": 1, "oid": "a" * 64}, "without a digest"),
        (
            {"type": "file", "path": "x", "size": 1, "oid": "a" * 40, "lfs": {"size": 1}},
            "without a digest",
        ),
        ({"type": "file", "path": "x", "size": 1, "oid": "a" * 40, "lfs": "x"}, "without a size"),
        ({"type": "file", "path": "config.json", "size": 1, "oid": "a" * 40}, "twice"),
    ],
)
async def test_entries_that_are_none_are_refused(hub: FakeHub, entry: Any, words: str) -> None:
    hub.repositories[TINY.repository].extra_entries = [entry]
    with pytest.raises(HubError, match=words):
        await listed(hub)


async def test_listings_are_bounded_in_pages_and_entries(hub: FakeHub) -> None:
    many = [{"type": "directory", "path": f"d{i}"} for i in range(40)]
    hub.repositories[TINY.repository].extra_entries = many
    hub.page_entries = 2
    with pytest.raises(HubError, match="more than 16 pages"):
        await listed(hub)
    hub.page_entries, hub.repositories[TINY.repository].extra_entries = 20_000, many * 300
    with pytest.raises(HubError, match="at most 10000 are accepted"):
        await listed(hub)


@pytest.mark.parametrize("what", ["revision", "tree"])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (HubAnswer(b"<html>"), "not a model hub"),
        (HubAnswer(b"\xff"), "not a model hub"),
        (HubAnswer(b"[" * 100_000), "not a model hub"),
        (HubAnswer(b'"text"'), "names no commit|is malformed"),
        (HubAnswer(b'{"sha": "main"}'), "names no commit|is malformed"),
        (HubAnswer(b" " * (MAX_ANSWER_BYTES + 1)), "more than"),
        (HubAnswer(b"{}", {"Content-Encoding": "gzip"}), "compresses"),
        (Status(418), "answered 418"),
    ],
    ids=["html", "no text", "deep", "text", "no commit", "long", "compressed", "teapot"],
)
async def test_answers_that_are_none_are_the_hubs_fault(
    hub: FakeHub, what: str, fault: Fault, words: str
) -> None:
    hub.fail("hub", what, fault)
    with pytest.raises(HubError, match=words):
        await listed(hub)


@pytest.mark.parametrize("what", ["revision", "tree"])
async def test_an_api_that_falls_silent_is_asked_again(hub: FakeHub, what: str) -> None:
    never = asyncio.Event()
    hub.fail("hub", what, Hold(0, never))
    told = Told()
    policy = RetryPolicy(answer_s=0.1)
    async with Hub.connect(
        hub.url, on_wait=told.on_wait, policy=policy, sleep=told.sleep
    ) as client:
        assert len(await client.files(TINY, await client.commit(TINY))) == 3
    never.set()
    assert [reason.partition(": ")[2] for reason in told.reasons] == [
        "127.0.0.1 does not answer in time"
    ]


async def test_another_commit_than_asked_for_is_refused(hub: FakeHub) -> None:
    hub.fail("hub", "revision", HubAnswer(b'{"sha": "%s"}' % (b"b" * 40)))
    async with connected(hub) as client:
        with pytest.raises(HubError, match=r"answers commit a.* with another"):
            await client.commit(TINY.at("a" * 40))


@pytest.mark.parametrize(
    "location",
    [
        *(
            "",
            "ftp://127.0.0.1/x",
            "file:///etc/passwd",
            "https://user:secret@127.0.0.1/x",
            "//[::1",
        ),
        *("http://127.0.0.1:99999/x", "http://127.0.0.1:x/x", "https:///x"),
        "https://127.0.0.1/" + "x" * 5000,
    ],
    ids=lambda location: location[:20],
)
async def test_redirects_to_nowhere_are_refused(hub: FakeHub, location: str) -> None:
    hub.fail("hub", WEIGHTS, Redirect(location))
    with pytest.raises(HubError, match="redirects where nobody should follow"):
        await read(hub, WEIGHTS)


async def test_an_answer_that_is_no_http_is_described_without_its_address(hub: FakeHub) -> None:
    """Addresses of storage hosts are signed: who reads them in a log can use them."""
    hub.fail("storage", WEIGHTS, HubAnswer(b"", {"X-Long": "x" * 9000}))
    with pytest.raises(RetryableError, match=r"^127\.0\.0\.1: Got more than") as caught:
        await read(hub, WEIGHTS)
    assert "Signature" not in str(caught.value) and len(str(caught.value)) < 300


async def test_a_circle_of_redirects_ends(hub: FakeHub) -> None:
    here = f"/{TINY.repository}/resolve/x/{WEIGHTS}"
    hub.repositories[TINY.repository].commits["x"] = SMALL
    hub.fail("hub", WEIGHTS, *[Redirect(here)] * 20)
    with pytest.raises(HubError, match="more than 5 redirects"):
        await read(hub, WEIGHTS)
    assert len(hub.requests(WEIGHTS, "hub")) == 6


def test_from_https_no_redirect_leads_to_http() -> None:
    secure = URL("https://hub.example/a/b/resolve/c/d")
    assert str(redirect_target(secure, "https://storage.example/x?s=a%2Bb%2F")).endswith(
        "?s=a%2Bb%2F"
    )
    assert (
        str(redirect_target(secure, "/api/cache?e=%22x%22"))
        == "https://hub.example/api/cache?e=%22x%22"
    )
    for location in ("http://storage.example/x", "http://127.0.0.1/x"):
        with pytest.raises(HubError, match="to http"):
            redirect_target(secure, location)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"X-Repo-Commit": "b" * 40}, "lists commit"),
        ({"X-Linked-Etag": '"' + "b" * 64 + '"'}, "lists digest"),
        ({"X-Linked-Etag": "x"}, "lists digest"),
        ({"ETag": 'W/"' + "b" * 40 + '"'}, "lists digest"),
        ({"X-Linked-Size": "11"}, "lists size"),
    ],
)
async def test_a_download_that_the_hub_says_is_another_file_is_refused(
    hub: FakeHub, headers: dict[str, str], words: str
) -> None:
    hub.fail("hub", WEIGHTS, HubAnswer(SMALL[WEIGHTS], headers))
    with pytest.raises(HubError, match=words):
        await read(hub, WEIGHTS)


async def test_the_etag_of_a_proxy_in_between_says_nothing(hub: FakeHub) -> None:
    hub.fail("hub", WEIGHTS, HubAnswer(SMALL[WEIGHTS], {"ETag": '"of-a-proxy"'}))
    assert await read(hub, WEIGHTS) == (0, SMALL[WEIGHTS])


@pytest.mark.parametrize(
    "content_range",
    ["", "bytes 6-9/10", "bytes 7-9/11", "bytes 7-8/10", "bytes 7-9/*", "bytes x-9/10"],
)
async def test_another_range_is_worth_another_attempt_from_the_start(
    hub: FakeHub, content_range: str
) -> None:
    hub.fail("storage", WEIGHTS, HubAnswer(b"789", {"Content-Range": content_range}, 206))
    with pytest.raises(RetryableError, match="another range") as caught:
        await read(hub, WEIGHTS, 7)
    assert caught.value.from_start


# --- where, and with which token


async def test_a_hub_with_a_certificate_of_its_own_making_is_not_asked_twice(
    tmp_path: Path,
) -> None:
    certificate, key = create_tls(Address(bytes(20)), Timestamp(int(datetime.now(UTC).timestamp())))
    (tmp_path / "tls.pem").write_bytes(certificate + key)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "tls.pem")
    async with fake_hub(tls) as secure:
        with pytest.raises(HubError, match=r"has another certificate than it should.*self-signed"):
            await listed(secure)
        assert not secure.seen


async def test_https_to_a_port_that_speaks_http_is_an_error_at_once(hub: FakeHub) -> None:
    hub.url = hub.url.replace("http:", "https:")
    with pytest.raises(HubError, match="or no TLS"):
        await listed(hub)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "hub.example",
            "ftp://hub.example",
            "https://",
            "https://user@hub.example",
            "https://h/?q=1",
        ),
        *("https://h/#x", "https://[::1", "https://h:99999", "https://" + "h" * 9000),
    ],
)
def test_what_is_no_address_of_a_hub_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="https://host"):
        parse_endpoint(text)


@pytest.mark.parametrize("end", ["", "/"])
async def test_a_hub_may_live_below_a_path(hub: FakeHub, end: str) -> None:
    hub.url += "/mirror" + end
    assert await read(hub, WEIGHTS) == (0, SMALL[WEIGHTS])
    assert all(seen.path.startswith("/mirror/") for seen in hub.seen if seen.host == "hub")


@pytest.mark.parametrize("token", ["a b", "a\r\nX-Evil: 1", "ä", "x" * 513])
async def test_a_token_that_is_none_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(ConfigError, match="HF_TOKEN is malformed") as caught:
        async with Hub.connect("https://hub.example", token, on_wait=Told().on_wait):
            raise AssertionError
    assert token not in str(caught.value)


async def test_a_token_never_travels_in_the_clear_beyond_this_machine() -> None:
    with pytest.raises(ConfigError, match="would travel unencrypted"):
        async with Hub.connect("http://hub.example", "hf_x", on_wait=Told().on_wait):
            raise AssertionError


async def test_the_proxy_of_the_environment_is_used(hub: FakeHub) -> None:
    """The stand-in plays the proxy. It answers for a host that does not exist."""
    told = Told()
    proxies = {"http": hub.url}
    async with Hub.connect(
        "http://hub.example",
        on_wait=told.on_wait,
        policy=IMPATIENT,
        sleep=told.sleep,
        proxies=lambda: proxies,
    ) as client:
        assert await client.commit(TINY) == hub.repositories[TINY.repository].refs["main"]
        proxies["http"] = "socks5://127.0.0.1:1"
        with pytest.raises(HubError, match="proxy of the environment cannot be used"):
            await client.commit(TINY)
