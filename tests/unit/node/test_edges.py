"""The small edges: logs, offers and their publishing, the operator's port."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from piecework.base.connections import Refused
from piecework.base.http import HttpError, HttpStatus, HttpUnreachable
from piecework.base.listener import bind
from piecework.chain.errors import SignerAway
from piecework_node import config, logs
from piecework_node.console.model import Snapshot
from piecework_node.daemon.admin import (
    ADDRESS_FILE,
    TOKEN_FILE,
    TOKEN_HEADER,
    AdminServer,
    admin_token,
    ask_daemon,
    console_url,
)
from piecework_node.daemon.changing import ChangeReport
from piecework_node.daemon.daemon import serve
from piecework_node.daemon.evidence import EvidenceWish
from piecework_node.daemon.ports import Ports
from piecework_node.errors import AdminError, ConfigError, KeyFileError
from piecework_node.evidence.export import NoEvidence
from piecework_node.jobs.offers import (
    OFFER_CONTENT_TYPE,
    IndexAnswer,
    OfferBoard,
    OfferEntry,
    build_offer,
    publish,
    refresh_due,
)
from piecework_node.metrics import Metrics
from piecework_protocol.capacity import EntryCapacity, capacity_of
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import Reason
from piecework_protocol.objects import Endpoint, Offer, Route, Service
from piecework_protocol.offers import check_terms, takes_images
from piecework_protocol.signing import Unsigned
from piecework_protocol.types import Address, PublicKey, Signature, Timestamp
from piecework_protocol.wire import SignedOffer, decode_offer, encode_offer
from tests.support.clock import FakeClock
from tests.support.node.fake_engine import FACTS
from tests.support.node.harness import DOMAIN, OPERATOR, TERMS, address_with, entry
from tests.support.node.memory_journal import MemoryJournal
from tests.support.node.own_tests import idle_tests
from tests.support.node.snapshots import a_snapshot

KEY = PublicKey(bytes(32))
ADDRESS = address_with(KEY)


def offer(
    now: int = 1_700_000_000, *, active: int = 0, entries: Sequence[OfferEntry] = ()
) -> SignedOffer:
    made = build_offer(
        TERMS,
        entries or (entry(active),),
        ADDRESS,
        operator=OPERATOR.address,
        sequence=1,
        now=Timestamp(now),
    )
    return SignedOffer(made, OPERATOR.sign_typed(DOMAIN, made))


# --- logs


def test_a_field_that_is_not_allowed_is_named_and_not_shown() -> None:
    out = io.StringIO()
    logs.logger(stream=out).info(
        "event", prompt="canary text", rpc_url="http://user:pw@host", job=b"\x01"
    )
    line = json.loads(out.getvalue())
    assert "canary" not in out.getvalue()
    assert "pw@" not in out.getvalue()
    assert line["dropped"] == "prompt,rpc_url"
    assert line["job"] == "01"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("form", "stream", "is_json"),
    [
        ("auto", io.StringIO, True),
        ("auto", Terminal, False),
        ("human", io.StringIO, False),
        ("json", Terminal, True),
    ],
)
def test_logs_are_for_a_person_on_a_terminal_and_json_otherwise(
    form: str, stream: type[io.StringIO], is_json: bool
) -> None:
    out = stream()
    logs.logger(form=form, stream=out).info("draining", active=2, prompt="canary text")
    text = out.getvalue()
    assert text.startswith("{") == is_json
    assert "draining" in text and "canary" not in text
    if is_json:
        assert json.loads(text)["active"] == 2
    else:
        assert "active=2" in text and "dropped=prompt" in text


def test_what_a_stranger_wrote_cannot_drive_the_terminal_through_a_log() -> None:
    out = Terminal()
    logs.logger(stream=out).warning("chain", error="no\x1b[2J answer\u202e")
    assert "\x1b" not in out.getvalue() and "\u202e" not in out.getvalue()


# --- offers


def test_an_offer_meets_the_terms_that_every_reader_checks() -> None:
    made = offer()
    check_terms(made.offer, made.offer.issued_at)
    assert decode_offer(encode_offer(made)) == made


@pytest.mark.parametrize(
    ("active", "slots", "queue"), [(0, 3, 3), (2, 1, 3), (3, 0, 3), (5, 0, 1), (9, 0, 0)]
)
def test_an_offer_says_what_is_free(active: int, slots: int, queue: int) -> None:
    made = offer(active=active).offer
    assert (made.slots_free, made.queue_free) == (slots, queue)


def test_an_offer_is_renewed_at_half_its_life_or_when_it_is_not_true_any_more() -> None:
    made, same, busier = offer().offer, (entry(),), (entry(1),)
    soon, early = Timestamp(made.issued_at + 1), Timestamp(made.issued_at + 10)
    assert not refresh_due(made, early, same, ADDRESS)
    assert refresh_due(made, early, busier, ADDRESS)
    assert not refresh_due(made, soon, busier, ADDRESS)
    other = replace(ADDRESS, sealing_key=PublicKey(bytes([1]) * 32))
    assert refresh_due(made, early, same, other)
    moved = replace(ADDRESS, endpoints=(Endpoint(Route.RELAYED, "relay.example:7443"),))
    assert refresh_due(made, early, same, moved)
    assert not refresh_due(made, soon, same, moved)
    half = Timestamp(made.issued_at + TERMS.offer_lifetime_s // 2)
    assert refresh_due(made, half, same, ADDRESS)


def test_an_entry_leaves_the_offer_at_once_and_comes_back_with_the_next() -> None:
    slow = replace(entry(), facts=replace(FACTS, profile="slow-cpu"))
    both = offer(entries=(entry(), slow)).offer
    alone = offer(entries=(entry(),)).offer
    soon, early = Timestamp(both.issued_at + 1), Timestamp(both.issued_at + 10)
    assert [model.profile for model in both.models] == [FACTS.profile, "slow-cpu"]
    assert (both.slots, both.slots_free, both.queue_free) == (6, 6, 6)
    assert refresh_due(both, soon, (entry(),), ADDRESS)
    assert not refresh_due(alone, soon, (entry(), slow), ADDRESS)
    assert refresh_due(alone, early, (entry(), slow), ADDRESS)


def test_an_offer_of_several_entries_says_how_busy_each_is() -> None:
    slow = replace(entry(), facts=replace(FACTS, profile="slow-cpu", images=True))
    made = offer(entries=(entry(TERMS.capacity), slow)).offer
    full, free = made.models
    assert capacity_of(made, full) == EntryCapacity(3, 0, 0) and capacity_of(made, full).is_full
    assert capacity_of(made, free) == EntryCapacity(3, 3, 3)
    assert takes_images(made) is False, "not every entry does"
    assert [told["hardware"] for told in json.loads(made.details)["entries"]] == ["none", "none"]
    whole = EntryCapacity(made.slots, made.slots_free, made.queue_free)
    for odd in ("", "[]", '{"capacity": 3}', '{"capacity": [{"slots": 1}, {}]}'):
        assert capacity_of(made.replace(details=odd), full) == whole
    boast = json.dumps({"capacity": [{"slots": 99, "slots_free": 99, "queue_free": 99}] * 2})
    assert capacity_of(made.replace(details=boast), full) == whole
    assert capacity_of(offer(active=1).offer, offer(active=1).offer.models[0]).slots_free == 2


def test_an_entry_that_counts_no_steps_has_no_price_for_them() -> None:
    loose = replace(FACTS, profile="vllm", service=Service.BEST_EFFORT, max_steps=0)
    made = offer(entries=(entry(), replace(entry(), facts=loose))).offer
    prices = [model.price_per_thousand_steps for model in made.models]
    assert prices == [TERMS.price_per_thousand_steps, 0]


async def test_sequence_numbers_grow_across_restarts() -> None:
    journal, clock = MemoryJournal(DOMAIN), FakeClock()
    numbers = []
    for _ in range(2):
        board = OfferBoard(journal, TERMS, domain=DOMAIN, signer=OPERATOR, clock=clock)
        for _ in range(2):
            signed = await board.issue((entry(),), address_with(KEY))
            numbers.append(signed.offer.sequence)
    assert numbers == [1, 2, 3, 4]


class Sometimes:
    """Implements `AsyncSigner`. It signs, and the answer is lost as often as `lost` says."""

    def __init__(self, lost: int) -> None:
        self.lost = lost
        self.signed: list[int] = []

    @property
    def address(self) -> Address:
        return OPERATOR.address

    async def typed(self, domain: Domain, message: TypedData) -> Signature:
        assert isinstance(message, Offer)
        self.signed.append(message.sequence)
        self.lost -= 1
        if self.lost >= 0:
            raise SignerAway("it does not answer in time")
        return await OPERATOR.typed(domain, message)

    async def transaction(self, transaction: Unsigned) -> Signature:
        return await OPERATOR.transaction(transaction)


async def test_a_signature_that_does_not_come_uses_up_no_number_and_loses_no_change() -> None:
    """Else a signer would be numbers ahead, and the next start would take the journal for old."""
    journal, signer = MemoryJournal(DOMAIN), Sometimes(0)
    board = OfferBoard(journal, TERMS, domain=DOMAIN, signer=signer, clock=FakeClock())
    await board.issue((entry(),), address_with(KEY))
    board.change(TERMS)
    signer.lost = 3
    for _ in range(3):
        with pytest.raises(SignerAway):
            await board.issue((entry(),), address_with(KEY))
        assert max(signer.signed) - 1 <= await journal.last_sequence()
        assert board.is_due(address_with(KEY), (entry(),))
    assert (await board.issue((entry(),), address_with(KEY))).offer.sequence == 2
    assert not board.is_due(address_with(KEY), (entry(),))
    last = await asyncio.gather(board.issue((entry(),), address_with(KEY)), board.withdraw())
    assert [one.offer.sequence for one in last if one is not None] == [3, 4]


class Poster:
    """Implements `HttpPoster` by a script of statuses and errors."""

    def __init__(self, *answers: int | HttpError) -> None:
        self.answers = list(answers)
        self.posts: list[tuple[str, bytes, Mapping[str, str]]] = []

    async def post(self, url: str, body: bytes, *, headers: Mapping[str, str]) -> bytes:
        self.posts.append((url, body, headers))
        answer = self.answers.pop(0)
        if isinstance(answer, HttpError):
            raise answer
        if answer >= 300:
            raise HttpStatus("index", answer, b"", None)
        return b""


DOWN = HttpUnreachable("index", "down")


async def test_an_offer_is_posted_as_its_wire_bytes() -> None:
    poster = Poster(200)
    (answer,) = await publish(
        offer(), ["http://index/"], poster, Metrics(), logs.silent(), clock=FakeClock()
    )
    assert answer == IndexAnswer("index", taken=True)
    headers = {"Content-Type": OFFER_CONTENT_TYPE}
    assert poster.posts == [("http://index/v1/offers", encode_offer(offer()), headers)]


@pytest.mark.parametrize(
    ("answers", "posts"),
    [((503, DOWN, 200), 3), ((DOWN,) * 3, 3), ((400,), 1), ((302,), 1)],
)
async def test_publishing_retries_what_may_pass_and_gives_up(
    answers: tuple[int | HttpError, ...], posts: int
) -> None:
    poster = Poster(*answers)
    metrics = Metrics()
    (answer,) = await publish(
        offer(),
        ["http://index"],
        poster,
        metrics,
        logs.silent(),
        clock=FakeClock(),
        backoff_s=0.0,
    )
    assert len(poster.posts) == posts
    assert answer.taken == (answers[-1] == 200)
    assert answer.declined == (isinstance(answers[-1], int) and not answer.taken)
    assert bool(answer.reason) != answer.taken


# --- the ports


async def test_a_port_that_is_taken_is_one_line_before_anything_is_loaded(tmp_path: Path) -> None:
    (taken,) = bind("127.0.0.1", 0)
    port = taken.getsockname()[1]
    flags = {"payout": "0x" + "11" * 20, "bind": f"127.0.0.1:{port}"}
    with pytest.raises(ConfigError) as caught:
        await serve(tmp_path, flags, "no password is needed for that")
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: address already in use. Is another worker running?"
    )
    taken.close()


async def test_a_port_is_free_again_when_the_other_one_is_taken(tmp_path: Path) -> None:
    (taken,), (free,) = bind("127.0.0.1", 0), bind("127.0.0.1", 0)
    port = free.getsockname()[1]
    free.close()
    settings = config.check(
        {
            "payout": "0x" + "11" * 20,
            "bind": f"127.0.0.1:{port}",
            "admin_port": taken.getsockname()[1],
        }
    )
    with pytest.raises(ConfigError):
        Ports.bind(settings)
    (again,) = bind("127.0.0.1", port)
    again.close()
    taken.close()


# --- the operator's port


SNAPSHOT = a_snapshot()


class Operations:
    """Implements `node.admin.Operations`."""

    def __init__(self) -> None:
        self.ready = True
        self.pressed: list[Any] = []

    async def status(self) -> dict[str, Any]:
        return {"state": "ready"}

    async def console(self) -> Snapshot:
        return SNAPSHOT

    async def evidence(self, asked: bytes) -> dict[str, Any]:
        if asked == b"{}":
            raise NoEvidence("the journal does not have such a job")
        return {"asked": EvidenceWish.parse(asked).job}

    def metrics(self) -> bytes:
        metrics = Metrics()
        metrics.refused(Reason.BUSY)
        return metrics.render()

    def settle(self) -> None:
        self.pressed.append("settle")

    def drain(self) -> None:
        self.pressed.append("drain")

    cards = ("0", "big")

    def pause(self, seconds: float | None, card: str | None) -> None:
        self.pressed.append(f"pause {seconds} {card}")

    def resume(self, card: str | None) -> tuple[str, ...]:
        self.pressed.append(f"resume {card}")
        return ("the schedule",)

    async def change(self, texts: Mapping[str, str], unset: Sequence[str]) -> ChangeReport:
        if "slots" in texts:
            raise ConfigError("slots: no")
        self.pressed += [*texts.items(), *unset]
        return ChangeReport(applied=tuple(texts), offers_until=9)

    own_tests = idle_tests()

    def connection_refused(self, why: Refused) -> None:
        self.pressed.append(why)


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[tuple[Operations, str, Path]]:
    operations = Operations()
    server = AdminServer(operations, admin_token(tmp_path))
    port = await server.start_on(bind("127.0.0.1", 0))
    (tmp_path / ADDRESS_FILE).write_text(json.dumps({"host": "127.0.0.1", "port": port}))
    yield operations, f"http://127.0.0.1:{port}", tmp_path
    await server.stop()


async def test_the_buttons_need_the_token_and_reading_does_not(
    admin: tuple[Operations, str, Path],
) -> None:
    operations, url, home = admin
    async with aiohttp.ClientSession() as session:
        for path in ("/status", "/health", "/ready", "/metrics"):
            assert (await session.get(url + path)).status == 200
        for headers in ({}, {TOKEN_HEADER: "wrong"}):
            assert (await session.post(url + "/drain", headers=headers)).status == 401
        assert (await session.post(url + "/evidence")).status == 401
    assert operations.pressed == []
    await ask_daemon(home, "POST", "/settle")
    await ask_daemon(home, "POST", "/drain")
    assert operations.pressed == ["settle", "drain"]


async def test_settings_change_with_the_token_and_a_refusal_is_one_line(
    admin: tuple[Operations, str, Path],
) -> None:
    operations, url, home = admin
    async with aiohttp.ClientSession() as session:
        assert (await session.post(url + "/settings", json={"set": {"a": "1"}})).status == 401
    wanted = json.dumps({"set": {"a": "1"}, "unset": ["b"]}).encode()
    answer = ChangeReport.from_json(await ask_daemon(home, "POST", "/settings", wanted))
    assert answer == ChangeReport(applied=("a",), offers_until=9)
    assert operations.pressed == [("a", "1"), "b"]
    with pytest.raises(AdminError, match="the worker refuses: slots: no"):
        await ask_daemon(home, "POST", "/settings", b'{"set": {"slots": "1"}}')
    for body in (b"", b"[]", b'{"set": {"a": 1}}', b'{"set": []}', b'{"unset": "b"}', b'{"x": {}}'):
        with pytest.raises(AdminError, match="a change is"):
            await ask_daemon(home, "POST", "/settings", body)
    strangers: list[dict[str, Any]] = [{}, {"applied": 1}, {"applied": [], "restart": []}]
    for stranger in strangers:
        with pytest.raises(AdminError, match="another version"):
            ChangeReport.from_json(stranger)


async def test_evidence_of_a_running_worker_is_for_who_has_the_token(
    admin: tuple[Operations, str, Path],
) -> None:
    _, _, home = admin
    assert await ask_daemon(home, "POST", "/evidence", b'{"job": "0a"}') == {"asked": "0a"}
    with pytest.raises(AdminError, match="does not have such a job"):
        await ask_daemon(home, "POST", "/evidence", b"{}")
    with pytest.raises(AdminError, match="not one that this version knows"):
        await ask_daemon(home, "POST", "/evidence", b'{"job": 7}')


async def test_a_test_job_is_for_who_has_the_token(admin: tuple[Operations, str, Path]) -> None:
    _, url, home = admin
    async with aiohttp.ClientSession() as session:
        assert (await session.post(url + "/test", json={"prompt": "a"})).status == 401
        assert (await session.get(url + "/test")).status == 401
    with pytest.raises(AdminError, match="no test job"):
        await ask_daemon(home, "GET", "/test")
    for body in (b"", b"[]", b'{"prompt": 1}', b'{"prompt": " "}', b'{"prompt": "\\ud800"}'):
        with pytest.raises(AdminError, match=r"a test job is|is a text"):
            await ask_daemon(home, "POST", "/test", body)
    for most in (b"0", b"true", b'"8"', b"1.5"):
        with pytest.raises(AdminError, match="max_tokens is"):
            await ask_daemon(home, "POST", "/test", b'{"prompt": "a", "max_tokens": ' + most + b"}")
    started = await ask_daemon(home, "POST", "/test", b'{"prompt": "a"}')
    assert (started["state"], started["number"]) == ("running", 1)
    assert (await ask_daemon(home, "GET", "/test"))["prompt"] == "a"
    with pytest.raises(AdminError, match="runs already"):
        await ask_daemon(home, "POST", "/test", b'{"prompt": "a"}')
    assert await ask_daemon(home, "POST", "/test/stop") == {"stopping": True}


async def test_the_console_is_for_who_has_its_key_and_the_key_presses_no_button(
    admin: tuple[Operations, str, Path],
) -> None:
    operations, url, home = admin
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        for path in ("/console", "/console/data"):
            assert (await session.get(url + path)).status == 401
        assert (await session.get(url + "/console?key=wrong")).status == 401
        page = await session.get(console_url(home))
        assert page.status == 200 and page.url.query_string == ""
        assert "script-src 'self'" in page.headers["Content-Security-Policy"]
        assert page.headers["Cache-Control"] == "no-store"
        assert "Canvases now" in await page.text()
        assert (await session.get(url + "/console/live.js")).content_type == "text/javascript"
        for header in ("", console_url(home).partition("=")[2]):
            pressed = await session.post(url + "/drain", headers={TOKEN_HEADER: header})
            assert pressed.status == 401
    assert operations.pressed == []
    data = await ask_daemon(home, "GET", "/console/data")
    assert Snapshot.from_json(data) == SNAPSHOT


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("worker", "worker"),
    ],
)
def test_the_address_of_the_console_is_one_that_a_browser_can_open(
    host: str, asked: str, tmp_path: Path
) -> None:
    address = {"host": host, "port": 9464}
    (tmp_path / ADDRESS_FILE).write_text(json.dumps(address))
    assert console_url(tmp_path).startswith(f"http://{asked}:9464/console?key=")


async def test_what_is_no_token_presses_no_button_and_sets_no_cookie(
    admin: tuple[Operations, str, Path],
) -> None:
    operations, url, _ = admin
    async with aiohttp.ClientSession() as session:
        linked = await session.get(url + "/console?key=wrong", allow_redirects=False)
        assert linked.status == 401 and not linked.cookies
    port = int(url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /drain HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\n"
    writer.write(head.encode() + TOKEN_HEADER.encode() + b": \xff\xfe\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 401")
    writer.close()
    assert operations.pressed == []


@pytest.mark.parametrize("held", [b"", b"\n", b"short", b"\xff" * 43])
def test_a_file_without_a_token_is_refused(tmp_path: Path, held: bytes) -> None:
    (tmp_path / TOKEN_FILE).write_bytes(held)
    with pytest.raises(KeyFileError, match=TOKEN_FILE):
        admin_token(tmp_path)


async def test_a_pause_takes_seconds_or_lasts_until_it_is_lifted(
    admin: tuple[Operations, str, Path],
) -> None:
    operations, _, home = admin
    await ask_daemon(home, "POST", "/pause")
    await ask_daemon(home, "POST", "/pause", b'{"seconds": 90}')
    lifted = await ask_daemon(home, "POST", "/resume")
    assert operations.pressed == ["pause None None", "pause 90 None", "resume None"]
    assert lifted == {"paused": True, "causes": ["the schedule"]}


async def test_one_card_is_paused_and_a_card_that_is_not_there_is_refused(
    admin: tuple[Operations, str, Path],
) -> None:
    operations, _, home = admin
    await ask_daemon(home, "POST", "/pause", b'{"seconds": 90, "card": "big"}')
    await ask_daemon(home, "POST", "/resume", b'{"card": "big"}')
    assert operations.pressed == ["pause 90 big", "resume big"]
    for path in ("/pause", "/resume"):
        with pytest.raises(AdminError, match="the cards are 0, big"):
            await ask_daemon(home, "POST", path, b'{"card": "small"}')


@pytest.mark.parametrize("body", [b"x", b"[]", b'{"seconds": 0}', b'{"seconds": true}'])
async def test_a_pause_of_no_time_is_refused(
    admin: tuple[Operations, str, Path], body: bytes
) -> None:
    operations, _, home = admin
    with pytest.raises(AdminError, match="whole number"):
        await ask_daemon(home, "POST", "/pause", body)
    assert operations.pressed == []


async def test_the_token_goes_to_the_daemon_and_not_to_a_proxy_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    operations = Operations()
    server = AdminServer(operations, admin_token(tmp_path), "0.0.0.0")  # noqa: S104
    port = await server.start_on(bind("127.0.0.1", 0))
    (tmp_path / ADDRESS_FILE).write_text(json.dumps({"host": "0.0.0.0", "port": port}))  # noqa: S104
    await ask_daemon(tmp_path, "POST", "/drain")
    await server.stop()
    assert operations.pressed == ["drain"]


async def test_a_rebound_name_reaches_nothing(admin: tuple[Operations, str, Path]) -> None:
    _, url, _ = admin
    async with aiohttp.ClientSession() as session:
        answer = await session.get(url + "/status", headers={"Host": "attacker.example:80"})
        assert answer.status == 403


async def test_not_ready_is_503_and_metrics_count_what_was_missed(
    admin: tuple[Operations, str, Path],
) -> None:
    operations, url, _ = admin
    operations.ready = False
    async with aiohttp.ClientSession() as session:
        assert (await session.get(url + "/ready")).status == 503
        text = await (await session.get(url + "/metrics")).text()
    assert 'piecework_refusals_total{reason="BUSY"} 1.0' in text


async def test_asking_a_home_without_a_worker_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AdminError, match="worker start"):
        await ask_daemon(tmp_path, "GET", "/status")
    (tmp_path / ADDRESS_FILE).write_text(json.dumps({"host": "127.0.0.1", "port": 1}))
    with pytest.raises(AdminError, match="does not answer"):
        await ask_daemon(tmp_path, "GET", "/status")
