"""A snapshot as tables of text. The terminal and the page draw these, and nothing else.

What is unknown is "–", never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from piecework.base.amounts import Token
from piecework_node.console.model import (
    Earned,
    LiveCanvas,
    ShownCard,
    ShownMoney,
    ShownTest,
    Snapshot,
)

UNKNOWN: Final = "–"
JOULES_PER_KWH: Final = 3_600_000
GIB: Final = 2**30
BAR: Final = 12
"""Characters of the bar of a canvas."""
Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One table. numbers: columns that hold numbers, by index. empty: what to say without rows."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    numbers: frozenset[int] = frozenset()
    empty: str = "none"
    note: str = ""


def panels(shown: Snapshot) -> tuple[Panel, ...]:
    """Return all tables, the most important first."""
    return (
        _facts("worker", "Worker", _worker(shown)),
        _facts("balance", "Money", _balance(shown)),
        _facts("prices", "Prices", _prices(shown)),
        _cards(shown.cards),
        _facts("health", "Chain, indexes, relays", _health(shown)),
        _canvases(shown),
        _test(shown.test),
        _alerts(shown),
        _earned("hours", "Earned by hour (UTC)", shown.hours, shown.money),
        _earned("days", "Earned by day (UTC)", shown.days, shown.money),
        _shares("models", "Earned by model, 7 days", shown.models, shown.money),
        _shares("clients", "Earned by client, 7 days", shown.clients, shown.money),
        _counts("jobs", "Jobs since the start", "State", shown.jobs),
        _counts("refusals", "Jobs missed since the start", "Reason", shown.refusals),
    )


def clock(at: int) -> str:
    """Return a time of the day in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%m-%d %H:%M:%S")


def dollars(money: ShownMoney, units: int | None) -> str:
    """Return base units in dollars, by the owner's own price of the token."""
    if units is None or money.usd_per_token is None:
        return UNKNOWN
    value = units * money.usd_per_token / 10**money.decimals
    return f"{value:,.2f}" if abs(value) >= 1 or not value else f"{value:,.6f}"


def power_units(money: ShownMoney, joules: float | None) -> int | None:
    """Return what energy cost, in base units, rounded up. None: joules or prices are unknown."""
    if joules is None or money.usd_per_kwh is None or not money.usd_per_token:
        return None
    usd = joules / JOULES_PER_KWH * money.usd_per_kwh
    return -int(-usd / money.usd_per_token * 10**money.decimals // 1)


def net_units(money: ShownMoney, earned: Earned) -> int | None:
    """Return what is left after gas and power, in base units, or None if one is unknown."""
    power = power_units(money, earned.joules)
    if earned.fees is None or earned.gas is None or power is None:
        return None
    return earned.gross + earned.fees - earned.gas - power


def _tokens(money: ShownMoney, units: int | None) -> str:
    if units is None:
        return UNKNOWN
    return Token(None, money.symbol, money.decimals).number(units)


def _number(value: float | None, form: str = ",.1f", unit: str = "") -> str:
    return UNKNOWN if value is None else f"{value:{form}}{unit}"


def _facts(key: str, title: str, rows: Iterable[Row]) -> Panel:
    return Panel(key, title, ("", ""), tuple(rows))


def _worker(shown: Snapshot) -> Iterable[Row]:
    rates = shown.rates
    yield "State", ": ".join((shown.state, *(["; ".join(shown.why)] if shown.why else [])))
    yield "Operator", shown.operator
    yield "Model", shown.model or UNKNOWN
    yield "Runs on", ", ".join(filter(None, (shown.device, shown.precision))) or UNKNOWN
    yield "Jobs", f"{shown.active} of {shown.slots} slots and {shown.queue} places in the queue"
    yield "Streams", str(shown.streams)
    yield "Tokens per second", _number(rates.tokens)
    yield "Steps per second", _number(rates.steps)
    yield "Joules per 1,000 tokens", _number(rates.joules_per_thousand)


def _prices(shown: Snapshot) -> Iterable[Row]:
    money, prices = shown.money, shown.prices
    for label, units in (
        ("Million prompt tokens", prices.prompt),
        ("Million output tokens", prices.output),
        ("Thousand steps", prices.steps),
    ):
        yield label, f"{_tokens(money, units)} {money.symbol}"
    yield "Automatic", "on" if prices.why else "off"
    for label, text in prices.why:
        yield label.capitalize(), text
    if prices.next_look_at is not None:
        yield "Next look (UTC)", clock(prices.next_look_at)


def _canvases(shown: Snapshot) -> Panel:
    columns = ("Job", "Client", "Canvas", "Denoising", "Step", "Prompt", "Drafted")
    rows = tuple(
        (
            canvas.job,
            canvas.client,
            str(canvas.canvas + 1),
            _bar(canvas),
            f"{canvas.step}/{canvas.max_steps}" if not canvas.place else UNKNOWN,
            str(canvas.prompt_tokens),
            str(canvas.drafted),
        )
        for canvas in shown.canvases
    )
    return Panel("canvases", "Canvases now", columns, rows, frozenset({2, 4, 5, 6}), "no job runs")


def _bar(canvas: LiveCanvas) -> str:
    if canvas.place:
        return f"waits, place {canvas.place}"
    return _steps(canvas.step, canvas.max_steps)


def _steps(step: int, most: int) -> str:
    done = min(BAR, round(BAR * step / max(1, most)))
    return "█" * done + "░" * (BAR - done)


def _test(test: ShownTest | None) -> Panel:
    rows: list[Row] = []
    if test is not None:
        state = f"{test.state}: {test.why}" if test.why else test.state
        if test.state == "running":
            state = f"canvas {test.canvas + 1} {_steps(test.step, test.max_steps)}"
        rows = [
            ("State", state),
            ("Card", test.card),
            ("Prompt", test.prompt),
            ("Text", test.text),
            ("Tokens", str(test.tokens)),
            ("Seconds", f"{test.seconds:.1f}"),
        ]
    empty = "none: `piecework worker try` runs a prompt of yours, without a client"
    return Panel("test", "Your own test job", ("", ""), tuple(rows), empty=empty)


def _balance(shown: Snapshot) -> Iterable[Row]:
    money, balance = shown.money, shown.balance
    for label, units in (
        ("Unsettled", balance.unsettled),
        ("Waiting in the escrow", balance.waiting),
        ("Delivered and unpaid", balance.exposure),
        ("Most that clients can cost", balance.bound),
    ):
        usd = dollars(money, units)
        more = f" (${usd})" if usd != UNKNOWN else ""
        yield label, _tokens(money, units) + (f" {money.symbol}{more}" if units is not None else "")
    yield "Gas", balance.gas or UNKNOWN
    left = balance.settlements_left
    yield "Settlements that the gas pays", UNKNOWN if left is None else f"{left:,}"


def _cards(cards: Sequence[ShownCard]) -> Panel:
    """The only card as a list of facts, or a line for each of several."""
    if len(cards) == 1:
        return _facts("gpu", "GPU", _gpu(cards[0]))
    columns = ("Card", "State", "Jobs", "Runs", "GPU", "Temp.", "Power", "Busy", "Memory", "Slowed")
    rows = []
    for card in cards:
        told = {row[0]: row[1] for row in _gpu(card)}
        gpu = [told.get(name, UNKNOWN) for name in _TOLD]
        state = ": ".join(filter(None, (card.state, card.why)))
        runs = ", ".join(filter(None, (card.model, card.precision))) or UNKNOWN
        rows.append((card.name, state, f"{card.active} of {card.slots}", runs, *gpu))
    return Panel("gpu", "Cards", columns, tuple(rows), frozenset({5, 6, 7}))


_TOLD: Final = ("Card", "Temperature", "Power", "Busy", "Memory", "Slowed down")


def _gpu(card: ShownCard) -> Iterable[Row]:
    gpu = card.gpu
    if gpu is None:
        yield "Card", card.missing or UNKNOWN
        return
    used, total = gpu.memory_used, gpu.memory_total
    yield "Card", gpu.name
    yield "Temperature", _number(gpu.temperature_c, "d", " °C")
    yield "Power", _number(gpu.power_w, ",.0f", " W")
    yield "Busy", _number(gpu.utilization, "d", " %")
    memory = UNKNOWN
    if used is not None and total is not None:
        memory = f"{used / GIB:,.1f} of {total / GIB:,.1f} GiB"
    yield "Memory", memory
    slow = gpu.throttled
    yield "Slowed down", UNKNOWN if slow is None else ", ".join(slow) or "no"
    yield "Other programs", UNKNOWN if gpu.processes is None else str(len(gpu.processes))


def _earned(key: str, title: str, rows: Sequence[Earned], money: ShownMoney) -> Panel:
    columns = ("When", "Jobs", *_MONEY)
    made = tuple((row.label, f"{row.jobs:,}", *_nets(row, money)) for row in rows)
    note = f"In {money.symbol}. Net is after gas and power."
    return Panel(key, title, columns, made, frozenset(range(1, 8)), "nothing yet", note)


def _shares(key: str, title: str, rows: Sequence[Earned], money: ShownMoney) -> Panel:
    columns = ("Who" if key == "clients" else "Model", "Jobs", "Canvases", *_MONEY)
    made = tuple(
        (row.label, f"{row.jobs:,}", f"{row.canvases:,}", *_nets(row, money)) for row in rows
    )
    note = (
        f"In {money.symbol}. Fees and gas are shared by canvases, power by tokens. Net is after "
        "gas and power."
    )
    return Panel(key, title, columns, made, frozenset(range(1, 9)), "nothing yet", note)


_MONEY: Final = ("Gross", "Fees", "Gas", "Power", "Net", "Net in $")


def _nets(row: Earned, money: ShownMoney) -> Row:
    net = net_units(money, row)
    parts = (row.gross, row.fees, row.gas, power_units(money, row.joules), net)
    return *(_tokens(money, part) for part in parts), dollars(money, net)


def _counts(key: str, title: str, what: str, counts: dict[str, int]) -> Panel:
    rows = tuple((name, f"{count:,}") for name, count in sorted(counts.items()))
    return Panel(key, title, (what, "Count"), rows, frozenset({1}))


JOINED: Final = "joined"
"""What the status says of a relay through which clients come."""


def _health(shown: Snapshot) -> Iterable[Row]:
    yield "Latest block", _number(shown.head_age_s, ",.0f", " s old")
    for host, seen in sorted(shown.indexes.items()):
        yield host, "shows the offer" if seen else "does not show the offer"
    for name, state in shown.relays.items():
        yield name, "relay joined" if state == JOINED else f"relay not joined: {state}"


def _alerts(shown: Snapshot) -> Panel:
    rows = tuple(
        (clock(alert.at), "over" if alert.over else "began", alert.code, alert.text)
        for alert in reversed(shown.alerts)
    )
    return Panel("alerts", "Last alerts (UTC)", ("When", "", "Code", "What"), rows)
