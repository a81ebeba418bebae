"""The console: one snapshot, the panels of text, the page, rates, and alerts by a webhook."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from piecework.base.http import HttpUnreachable
from piecework_node import logs
from piecework_node.console.alerts import ATTEMPTS, MAX_WAITING, AlertBook, Webhook
from piecework_node.console.meter import HOUR_S, MAX_HOURS, ConsoleMeter, JobEnergy
from piecework_node.console.model import Alert, ConsoleRates, Earned, ShownMoney, Snapshot
from piecework_node.console.page import render
from piecework_node.console.panels import (
    UNKNOWN,
    Panel,
    dollars,
    net_units,
    panels,
    power_units,
)
from piecework_node.daemon.console_feed import (
    OTHER,
    UNKNOWN_MODEL,
    EarningsBook,
    EnergyNotes,
)
from piecework_node.journal.records import PaidJob, SpentTx, StoredChannel, TxKind
from piecework_node.owner.readings import GpuReading
from piecework_protocol.types import Amount, ChannelId, Digest, JobId, Timestamp
from piecework_protocol.wire import SignedOffer
from tests.support.clock import FakeClock
from tests.support.node.harness import DOMAIN
from tests.support.node.memory_journal import MemoryJournal
from tests.support.node.snapshots import AT, CARD, a_card, a_snapshot
from tests.vectors import generate

MONEY = ShownMoney("USDC", 6, 1.0, 0.36)
OFFER = generate.offers()["2 models"]
FIRST, SECOND = (model.name for model in OFFER.offer.models)
OFFERED = Digest(bytes(32))


def panel(shown: Snapshot, key: str) -> Panel:
    return next(panel for panel in panels(shown) if panel.key == key)


@pytest.mark.parametrize("gpu", [CARD, None])
def test_a_snapshot_survives_its_json(gpu: GpuReading | None) -> None:
    shown = a_snapshot(gpu)
    assert Snapshot.from_json(json.loads(json.dumps(shown.to_json()))) == shown


@pytest.mark.parametrize("body", [{}, {**a_snapshot().to_json(), "money": {"symbol": "x"}}])
def test_a_snapshot_of_another_version_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="another console"):
        Snapshot.from_json(body)


def test_what_is_unknown_is_a_dash_and_never_zero() -> None:
    shown = a_snapshot(None)
    for row in panel(shown, "hours").rows:
        assert row[5:] == (UNKNOWN, UNKNOWN, UNKNOWN)
    assert ("Joules per 1,000 tokens", UNKNOWN) in panel(shown, "worker").rows
    ((name, missing),) = panel(shown, "gpu").rows
    assert name == "Card" and missing.startswith("NVML")
    for key in ("models", "clients"):
        assert all(row[6:] == (UNKNOWN, UNKNOWN, UNKNOWN) for row in panel(shown, key).rows)


def test_net_is_gross_and_fees_less_gas_and_power() -> None:
    hour = Earned("now", 1, 4, 1_000_000, 5_000, 105_000, 3_600_000.0)
    assert power_units(MONEY, hour.joules) == 360_000
    assert net_units(MONEY, hour) == 540_000
    assert dollars(MONEY, 540_000) == "0.540000"
    assert dollars(replace(MONEY, usd_per_token=2.5), 4_000_000) == "10.00"
    assert net_units(MONEY, replace(hour, gas=None)) is None
    assert power_units(replace(MONEY, usd_per_kwh=None), 1.0) is None


def test_a_model_and_a_client_have_their_net_of_gas_and_power() -> None:
    shown = replace(a_snapshot(), money=MONEY)
    for key in ("models", "clients"):
        drawn = panel(shown, key)
        row = dict(zip(drawn.columns, drawn.rows[0], strict=True))
        assert row["Power"] == "0.09" and row["Net in $"].startswith("1,")
        parts = {name: float(row[name].replace(",", "")) for name in drawn.columns[3:8]}
        taken = parts["Gas"] + parts["Power"]
        assert parts["Net"] == pytest.approx(parts["Gross"] + parts["Fees"] - taken)
    assert panel(shown, "clients").rows[1][6:] == (UNKNOWN, UNKNOWN, UNKNOWN)


def test_power_that_costs_less_than_a_base_unit_costs_one() -> None:
    assert power_units(MONEY, 1.0) == 1
    assert power_units(MONEY, 0.0) == 0


def test_a_canvas_is_drawn_without_any_of_its_text() -> None:
    first, _, last = panel(a_snapshot(), "canvases").rows
    assert first[3] == "████░░░░░░░░" and first[4] == "17/48"
    assert last[3] == "waits, place 1" and last[4] == UNKNOWN
    assert "text" not in set(a_snapshot().to_json()["canvases"][0])


class Tags(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.labels: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.append(tag)
        self.sources += [v for k in ("src", "href") if (v := known.get(k))]
        self.labels += [v for v in [known.get("aria-labelledby")] if v]
        self.ids |= {v for v in [known.get("id")] if v}


def test_the_page_escapes_what_others_wrote_and_loads_only_its_own_script() -> None:
    page = Tags(render(a_snapshot()))
    assert page.tags.count("script") == 1 and page.sources == ["/console/live.js"]
    assert set(page.labels) <= page.ids
    assert page.tags.count("section") == page.tags.count("h2") == len(panels(a_snapshot()))
    assert "alert(1)&lt;/script&gt;" in render(a_snapshot())


def test_the_page_and_the_terminal_have_the_same_words() -> None:
    shown = a_snapshot()
    page = unescape(re.sub(r"<[^>]+>", "\n", render(replace(shown, model="m"))))
    words = set(page.split("\n"))
    for drawn in panels(replace(shown, model="m")):
        for row in drawn.rows:
            assert set(filter(None, row)) <= words


def test_rates_are_those_of_the_last_minute() -> None:
    meter = ConsoleMeter()
    assert meter.rates == ConsoleRates()
    for second in range(121):
        tokens = 10 * max(0, second - 60)
        card = GpuReading("card", energy_j=1000.0 + 50 * second)
        meter.sample(second, AT + second, tokens=tokens, steps=second, gpus={"0": card}, ours=["0"])
    assert meter.rates.tokens == 10 and meter.rates.steps == 1
    assert meter.rates.joules_per_thousand == 5000


def test_energy_is_counted_for_our_work_alone_and_only_where_the_card_tells() -> None:
    meter = ConsoleMeter()
    hour = AT // HOUR_S
    for second, watts, ours in ((0, 100.0, ["0"]), (2, 200.0, ["0"]), (4, 200.0, [])):
        card = GpuReading("card", power_w=watts)
        meter.sample(second, hour * HOUR_S, tokens=0, steps=0, gpus={"0": card}, ours=ours)
    meter.sample(6, hour * HOUR_S, tokens=0, steps=0, gpus={"0": None}, ours=["0"])
    assert meter.hours == {hour: 300.0}
    assert meter.rates.joules_per_thousand is None
    for later in range(MAX_HOURS + 5):
        card = GpuReading("card", power_w=1.0)
        wall = (hour + later) * HOUR_S
        meter.sample(10 + later, wall, tokens=0, steps=0, gpus={"0": card}, ours=["0"])
    assert len(meter.hours) == MAX_HOURS


def test_joules_per_token_are_unknown_while_the_card_did_not_tell_for_a_part_of_the_minute() -> (
    None
):
    meter = ConsoleMeter()

    def sample(second: int, card: GpuReading | None) -> float | None:
        gpus = {"0": card}
        meter.sample(second, AT, tokens=10 * second, steps=0, gpus=gpus, ours=["0"])
        return meter.rates.joules_per_thousand

    told = [GpuReading("card", power_w=50.0)] * 31
    assert [sample(second, card) for second, card in enumerate(told)][1:] == [5000.0] * 30
    assert sample(31, None) is None
    assert [sample(second, told[0]) for second in range(32, 93)][-2:] == [None, 5000.0]


async def test_what_a_day_drew_outlives_a_restart() -> None:
    journal, hour = MemoryJournal(DOMAIN), AT // HOUR_S

    async def run(*readings: float) -> dict[int, float]:
        meter, notes = ConsoleMeter(), EnergyNotes(journal)
        meter.remember(await notes.read())
        for second, energy in enumerate(readings):
            card = GpuReading("card", energy_j=energy)
            wall = hour * HOUR_S + second
            meter.sample(second, wall, tokens=0, steps=0, gpus={"0": card}, ours=["0"])
        await notes.write(meter.hours)
        return meter.hours

    assert await run() == {}
    assert await run(1000.0, 1300.0) == {hour: 300.0}
    # The driver was loaded again meanwhile.
    assert await run(5.0, 45.0) == {hour: 340.0}
    assert await EnergyNotes(journal).read() == {hour: 340.0}


# --- earnings


class FakeBookJournal:
    """Implements `BookJournal` over lists, and remembers what it was asked."""

    def __init__(self) -> None:
        self.jobs: list[PaidJob] = []
        self.txs: list[SpentTx] = []
        self.asked: list[int] = []

    async def paid_lately(self, since: int) -> AsyncIterator[tuple[PaidJob, ...]]:
        self.asked.append(since)
        for job in self.jobs:
            if job.at >= since:
                yield (job,)

    async def spent(self, since: int, until: int) -> tuple[SpentTx, ...]:
        return tuple(tx for tx in self.txs if since <= tx.at < until)

    async def channel(self, channel: ChannelId) -> StoredChannel | None:
        return None

    async def offer(self, digest: Digest) -> SignedOffer | None:
        return OFFER if digest == OFFERED else None

    def pay(
        self,
        at: int,
        gross: int,
        channel: int = 1,
        *,
        entry: int | None = None,
        canvases: int = 2,
        tokens: int | None = 512,
    ) -> None:
        """Add a job. entry: of `OFFER`. Without one the journal has let go of it."""
        job = PaidJob(
            JobId(len(self.jobs).to_bytes(32, "big")),
            ChannelId(channel.to_bytes(32, "big")),
            Timestamp(at),
            canvases,
            Amount(gross),
            None if entry is None else OFFERED,
            entry,
            tokens,
        )
        self.jobs.append(job)


async def test_earnings_add_up_by_hour_and_by_day_and_closed_hours_are_read_once() -> None:
    journal = FakeBookJournal()
    book = EarningsBook(journal, 3_000_000_000)
    for back in (0, 1, 30, 30, 7 * 24 + 1):
        journal.pay(AT - back * HOUR_S, 100)
    journal.txs.append(SpentTx(b"", TxKind.SETTLE, Timestamp(AT), 10**15, Amount(0)))
    for time in (AT, AT + HOUR_S):
        await book.refresh(time)
    assert journal.asked[1] > journal.asked[0] + 6 * 24 * HOUR_S
    hours = book.hours(AT + HOUR_S, {AT // HOUR_S: 77.0})
    assert [(row.jobs, row.gross, row.gas, row.joules) for row in hours] == [
        (1, 100, 3_000_000, 77.0),
        (1, 100, 0, None),
    ]
    assert sum(row.gross for row in book.days(AT + HOUR_S, {})) == 400


async def test_a_day_does_not_know_its_power_if_an_hour_with_jobs_had_no_reading() -> None:
    journal, book_at = FakeBookJournal(), AT
    book, hour = EarningsBook(journal, 1), book_at // HOUR_S
    journal.pay(AT, 100)
    journal.pay(AT - HOUR_S, 100)
    await book.refresh(AT)
    idle = {hour - 2: 7.0}
    assert [row.joules for row in book.days(AT, idle | {hour: 50.0})] == [None]
    assert [row.joules for row in book.days(AT, idle | {hour: 50.0, hour - 1: 3.0})] == [60.0]
    assert [row.joules for row in book.hours(AT, idle | {hour: 50.0})] == [50.0, None, 7.0]


async def test_jobs_count_for_the_model_that_they_named_of_an_offer_of_several() -> None:
    journal = FakeBookJournal()
    book = EarningsBook(journal, 1)
    for gross, entry in ((30, 0), (20, 1), (10, 1), (7, None), (1, 2)):
        journal.pay(AT, gross, entry=entry)
    await book.refresh(AT)
    assert {row.label: (row.jobs, row.gross) for row in book.by_model(AT, {})} == {
        FIRST: (1, 30),
        SECOND: (2, 30),
        UNKNOWN_MODEL: (2, 8),
    }


async def test_gas_is_shared_by_canvases_and_power_by_tokens_and_the_shares_add_up() -> None:
    journal, hour = FakeBookJournal(), AT // HOUR_S
    book = EarningsBook(journal, 3_000_000_000)
    journal.pay(AT, 100, channel=1, entry=0, canvases=1, tokens=100)
    journal.pay(AT, 50, channel=2, entry=1, canvases=3, tokens=300)
    journal.pay(AT - 5 * HOUR_S, 20, channel=2, entry=1, canvases=4, tokens=512)
    journal.txs.append(SpentTx(b"", TxKind.SETTLE, Timestamp(AT), 10**15, Amount(800)))
    book._clients = {job.channel: job.channel.hex() for job in journal.jobs}
    await book.refresh(AT)
    # In the hours before and between the two with jobs the card waited.
    joules = {hour: 80.0, hour - 5: 10.0, hour - 2: 4.0, hour - 9: 2.0, hour - 500: 999.0}
    for rows in (book.by_model(AT, joules), book.by_client(AT, joules)):
        shares = [(row.gross, row.fees, row.gas, row.joules) for row in rows]
        assert shares == [
            (100, 100, 375_000, 20.0),
            (70, 700, 2_625_000, 76.0),
        ]
        for made in (rows, book.days(AT, joules)):
            assert sum(row.gas or 0 for row in made) == 3_000_000
            assert sum(row.joules or 0.0 for row in made) == 96.0


async def test_the_power_of_a_part_is_unknown_only_where_its_own_hours_are() -> None:
    journal, hour = FakeBookJournal(), AT // HOUR_S
    book = EarningsBook(journal, 1)
    journal.pay(AT, 9, entry=0)
    journal.pay(AT - HOUR_S, 8, entry=1)
    journal.pay(AT - 2 * HOUR_S, 7, tokens=None)
    await book.refresh(AT)
    by_label = {r.label: r.joules for r in book.by_model(AT, {hour: 5.0, hour - 2: 3.0})}
    # All of an hour's power is of the only model in it, also where no tokens are known.
    assert by_label == {FIRST: 5.0, SECOND: None, UNKNOWN_MODEL: 3.0}
    journal.pay(AT, 1, tokens=None)
    await book.refresh(AT)
    by_label = {r.label: r.joules for r in book.by_model(AT, {hour: 5.0, hour - 2: 3.0})}
    assert by_label == {FIRST: None, SECOND: None, UNKNOWN_MODEL: None}


async def test_a_voucher_that_comes_later_is_counted_with_its_hour() -> None:
    journal = FakeBookJournal()
    book = EarningsBook(journal, 1)
    await book.refresh(AT)
    journal.pay(AT - HOUR_S, 40)
    await book.refresh(AT + HOUR_S)
    assert sum(row.gross for row in book.days(AT + HOUR_S, {})) == 40


async def test_the_largest_models_and_clients_are_shown_and_the_rest_together() -> None:
    journal = FakeBookJournal()
    book = EarningsBook(journal, 1)
    journal.pay(AT, 5)
    await book.refresh(AT)
    (model,) = book.by_model(AT, {})
    assert (model.label, model.gross, model.canvases) == (UNKNOWN_MODEL, 5, 2)
    book._clients = {ChannelId(i.to_bytes(32, "big")): f"c{i}" for i in range(30)}
    for i in range(1, 30):
        journal.pay(AT, i, channel=i)
    await book.refresh(AT)
    shown = book.by_client(AT, {AT // HOUR_S: 300.0})
    assert shown[0].label == "c29" and shown[-1].label == OTHER
    assert sum(row.gross for row in shown) == 5 + sum(range(1, 30))
    assert sum(row.joules or 0.0 for row in shown) == pytest.approx(300.0)


# --- alerts


class Post:
    """Implements `AlertPoster`: it fails so many times, then takes."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.bodies = failures, list[bytes]()
        self.taken = asyncio.Event()

    async def post(self, url: str, body: bytes, *, headers: Mapping[str, str]) -> bytes:
        assert url == "https://hook.example/secret" and headers["Content-Type"]
        if self.failures:
            self.failures -= 1
            raise HttpUnreachable("hook.example", "no route")
        self.bodies.append(body)
        self.taken.set()
        return b""


async def no_sleep(_: float) -> None:
    await asyncio.sleep(0)


def webhook() -> Webhook:
    return Webhook("https://hook.example/secret", "0xabc", sleep=no_sleep, log=logs.silent())


async def posted(hook: Webhook, post: Post) -> None:
    running = asyncio.ensure_future(hook.run(post))
    async with asyncio.timeout(5):
        await post.taken.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_a_condition_alerts_when_it_begins_and_when_it_is_over() -> None:
    told: list[Alert] = []
    book = AlertBook(FakeClock(AT), told.append)
    for conditions in ({}, {"gas-low": "no gas"}, {"gas-low": "no gas"}, {}):
        book.observe(conditions)
    book.event("engine-lost", "gone")
    assert [(a.code, a.over) for a in told] == [
        ("gas-low", False),
        ("gas-low", True),
        ("engine-lost", False),
    ]
    assert list(book.last) == told


async def test_a_webhook_is_tried_again_and_says_what_where_and_when() -> None:
    hook, post = webhook(), Post(ATTEMPTS - 1)
    hook.add(Alert(AT, "gas-low", "no gas"))
    await posted(hook, post)
    body = json.loads(post.bodies[0])
    assert (body["code"], body["state"], body["at"], body["worker"]) == (
        "gas-low",
        "began",
        AT,
        "0xabc",
    )
    assert "secret" not in post.bodies[0].decode() and hook.dropped == 0


async def test_an_alert_that_no_webhook_takes_is_dropped_and_the_next_one_goes() -> None:
    hook, post = webhook(), Post(ATTEMPTS)
    hook.add(Alert(AT, "one", "1"))
    hook.add(Alert(AT, "two", "2"))
    await posted(hook, post)
    assert hook.dropped == 1 and json.loads(post.bodies[0])["code"] == "two"


def test_alerts_that_wait_are_bounded() -> None:
    hook = webhook()
    for i in range(MAX_WAITING + 3):
        hook.add(Alert(AT, str(i), ""))
    assert hook.dropped == 3


def test_no_setting_shows_the_address_of_the_webhook(tmp_path: Path) -> None:
    from piecework_node import config

    chosen = config.check({"payout": "0x" + "11" * 20, "alert_webhook": "https://h.example/key"})
    assert "h.example" not in repr(chosen)


def test_the_prices_that_are_asked_have_their_reasons_and_the_next_look() -> None:
    rows = {row[0]: row[1] for row in panel(a_snapshot(), "prices").rows}
    assert rows["Million output tokens"] == "0.190001 USDC" and rows["Automatic"] == "on"
    assert "5 other operators" in rows["Market"]
    assert rows["Next look (UTC)"] == "01-15 08:30:00"
    rows = {row[0]: row[1] for row in panel(a_snapshot(None), "prices").rows}
    assert rows["Automatic"] == "off" and len(rows) == 4


def test_energy_counts_while_jobs_run_and_its_tokens_where_the_card_tells() -> None:
    energy = JobEnergy()

    def after(drawn: float | None, tokens: int, *, busy: bool) -> tuple[float | None, int]:
        energy.add(drawn, tokens, busy=busy)
        return energy.joules, energy.tokens

    assert after(50.0, 100, busy=True) == (None, 0), "nothing is known of the time before"
    assert after(None, 300, busy=True) == (None, 0), "the card did not tell"
    assert after(40.0, 500, busy=True) == (40.0, 200)
    assert after(40.0, 500, busy=False) == (40.0, 200), "an idle card costs no token"
    assert after(10.0, 700, busy=False) == (40.0, 400), "its canvas ended in this second"


# --- several cards


def test_several_cards_have_a_line_each_and_one_card_has_a_list_of_facts() -> None:
    hot = replace(a_card("desk"), state="paused", why="the card has 83 °C", active=0)
    blind = a_card("cpu", gpu=None)
    (drawn,) = [p for p in panels(replace(a_snapshot(), cards=(hot, blind))) if p.key == "gpu"]
    assert drawn.title == "Cards"
    assert [row[:3] for row in drawn.rows] == [
        ("desk", "paused: the card has 83 °C", "0 of 8"),
        ("cpu", "ready", "3 of 8"),
    ]
    assert drawn.rows[0][5:8] == ("71 °C", "312 W", "98 %")
    assert drawn.rows[1][5:] == ("–",) * 5
    (alone,) = [p for p in panels(a_snapshot()) if p.key == "gpu"]
    assert alone.title == "GPU" and ("Temperature", "71 °C") in alone.rows


def test_energy_is_the_sum_of_our_cards_and_unknown_if_one_of_them_does_not_tell() -> None:
    meter, hour = ConsoleMeter(), AT // HOUR_S

    def sample(at: float, *, ours: list[str], **watts: float | None) -> None:
        gpus = {n: None if w is None else GpuReading(n, power_w=w) for n, w in watts.items()}
        meter.sample(at, hour * HOUR_S, tokens=0, steps=0, gpus=gpus, ours=ours)

    sample(0, ours=["a", "b"], a=100.0, b=50.0)
    sample(2, ours=["a", "b"], a=100.0, b=50.0)
    assert meter.hours == {hour: 300.0}
    sample(4, ours=["a"], a=100.0, b=900.0)
    assert meter.hours == {hour: 500.0}, "what a paused card draws is its owner's"
    sample(6, ours=["a", "b"], a=100.0, b=None)
    assert meter.hours == {hour: 500.0}


def test_an_owner_behind_a_router_sees_which_relays_are_joined() -> None:
    (health,) = (panel for panel in panels(a_snapshot()) if panel.key == "health")
    assert ("relay.example:7443", "relay joined") in health.rows
    assert ("far.example:7443", "relay not joined: it does not answer") in health.rows
