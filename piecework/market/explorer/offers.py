"""The first page: the market in figures and charts, its offers, its models. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from html import escape
from typing import Any, Final
from urllib.parse import urlencode

from piecework.market.catalogue import FoundEntries
from piecework.market.explorer import charts
from piecework.market.explorer.layout import (
    Cell,
    Column,
    Money,
    counted,
    duration,
    facts,
    page,
    settled_facts,
    short,
    table,
    written,
)
from piecework.market.history import MarketSample, SettledDay, SettledSum
from piecework.market.listing import Entry, Listed, Query, Sort, blended_price
from piecework_protocol.capacity import EntryCapacity, capacity_of
from piecework_protocol.objects import Service
from piecework_protocol.service import service_name
from piecework_protocol.types import Address, Digest, Timestamp, address_hex, to_hex
from piecework_protocol.usual import MEAN_STEPS, Source, price_with_steps, usual_jobs

MAX_SHOWN_OFFERS: Final = 50
"""Rows of the table of offers, which is for people. Programs read more at once from /v1/offers."""
MAX_SHOWN_MODELS: Final = 100
"""Rows of the table of models. /v1/models has all, page by page."""
MAX_SHOWN_SAMPLES: Final = 12
"""Rows of the table of the last day's samples. /v1/history has all."""
MAX_KEPT_ROWS: Final = 4096
"""Rows that are made once: those of the first pages in each order."""
TITLE: Final = "Piecework market"
DEPLOYMENT: Final = "/deployment.json"
DESCRIPTOR: Final = "/market.json"
SIGNATURE: Final = DESCRIPTOR + ".sig"
"""Where an index serves what newcomers need."""
SERVICES: Final = {Service.REPLAYABLE: "replayable", Service.BEST_EFFORT: "best effort"}
ORDERS: Final = {
    Sort.PRICE: "cheapest first",
    Sort.SPEED: "fastest first",
    Sort.FIRST: "shortest wait for the first canvas",
    Sort.FREE: "most free slots",
    Sort.STAKE: "most stake",
}
SPREAD: Final = ("Lowest", "Lower quartile", "Median", "Upper quartile", "Highest")
"""The names of `FiveNumbers`."""
OFFER_COLUMNS: Final = (
    Column("Worker"),
    Column("Model"),
    Column("Kinds"),
    Column("Service"),
    Column("With steps, 1M", number=True),
    Column("Output, 1M", number=True),
    Column("Prompt, 1M", number=True),
    Column("1,000 steps", number=True),
    Column("Tokens/s", number=True),
    Column("Slots"),
    Column("Lives", number=True),
)
MODEL_COLUMNS: Final = (
    Column("Model"),
    Column("Digest"),
    Column("Workers", number=True),
    Column("Free slots", number=True),
    Column(f"From, 1M at {MEAN_STEPS} steps", number=True),
    Column("Fastest, tokens/s", number=True),
    Column("Context, tokens", number=True),
)
SAMPLE_COLUMNS: Final = (
    Column("At, UTC"),
    *(Column(f"{name} price", number=True) for name in SPREAD),
    *(Column(f"{name} tokens/s", number=True) for name in SPREAD),
    Column("Free slots", number=True),
)
_SAMPLES_CAPTION: Final = (
    "Of each sample the lowest value, the quartiles, the median and the highest one. Each worker "
    "counts once, and its models share that. "
    f"Prices are for 1M tokens at {MEAN_STEPS} steps. A dash: nothing was offered, or it was not "
    "recorded then."
)
_CAPTION: Final = (
    'One row for each model at each worker. Prices are for a million tokens. "With steps" is what '
    "output costs together with the denoising steps that it takes, as the worker says of its own "
    'jobs: a claim, which clients hold against their bills. "Cheapest first" compares all workers '
    "at the same number of steps. Replayable: the client's seed decides the text, and each receipt "
    "commits to how it came about. Best effort: neither."
)


@dataclass(frozen=True, slots=True)
class Overview:
    """What the first page shows.

    Attributes:
        found: One page of offers.
        models: As `Catalogue.models` has them.
        now: The sample of this moment.
        samples: The last day's, oldest first.
        settled: What was settled on each of the last days, oldest first.
        in_all: What was ever settled.
    """

    found: FoundEntries
    models: dict[str, Any]
    now: MarketSample
    samples: Sequence[MarketSample]
    settled: Sequence[SettledDay]
    in_all: SettledSum


class OfferRows:
    """Rows of offers. Each is made once for an offer: only its last cell changes with time."""

    def __init__(self, money: Money) -> None:
        self.money = money
        self._kept: OrderedDict[tuple[Address, Digest, str], _Row] = OrderedDict()

    def cells(self, entry: Entry, now: Timestamp) -> tuple[Cell, ...]:
        """Return the row of one model at one worker, for `OFFER_COLUMNS`."""
        key = (entry.listed.signed.offer.operator, entry.model.digest, entry.model.profile)
        row = self._kept.get(key)
        if row is None or row.listed is not entry.listed:
            row = self._kept[key] = _Row(entry.listed, _lasting_cells(entry, self.money))
            while len(self._kept) > MAX_KEPT_ROWS:
                self._kept.popitem(last=False)
        return (*row.cells, _lives(entry, now))


@dataclass(frozen=True, slots=True)
class _Row:
    listed: Listed
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class WayIn:
    """How a reader comes into the market.

    url: where readers reach this index. key: who signed the market's descriptor, if it serves one.
    """

    url: str
    key: Address | None = None


def render(overview: Overview, query: Query, way: WayIn, rows: OfferRows) -> str:
    """Return the page."""
    now, money = overview.now, rows.money
    figures = facts(
        (f"{now.workers:,}", "workers"),
        (f"{now.models:,}", "models"),
        (f"{now.slots_free:,} of {now.slots:,}", "free slots"),
        *settled_facts(overview.in_all, money),
    )
    offers = table(
        _CAPTION,
        OFFER_COLUMNS,
        (rows.cells(entry, now.at) for entry in overview.found.entries),
        "No live offer fits.",
    )
    parts = {
        "figures": figures,
        "history": _charts(overview, money),
        "samples": _samples_table(overview.samples, money),
        "find": f"<h2>Offers</h2>\n{_form(query)}",
        "offers": f"{offers}\n{_pager(query, overview.found.total)}",
        "models": f"<h2>Models</h2>\n{_models_table(overview.models, money)}",
        "how": _how(way),
    }
    intro = """<p>Text by the canvas on other people's GPUs. Every offer below is signed by a bonded
worker and expires within minutes. This index is only a cache: clients verify each offer against its
signature and the chain.</p>"""
    return page(TITLE, intro, parts, now.at, money)


def offer_cells(entry: Entry, now: Timestamp, money: Money) -> tuple[Cell, ...]:
    """Return the row of one model at one worker, for `OFFER_COLUMNS`."""
    return (*_lasting_cells(entry, money), _lives(entry, now))


def _lives(entry: Entry, now: Timestamp) -> Cell:
    return Cell(duration(entry.listed.signed.offer.expires_at - now))


def _lasting_cells(entry: Entry, money: Money) -> tuple[Cell, ...]:
    offer, model = entry.listed.signed.offer, entry.model
    operator = to_hex(offer.operator)
    link = "/?" + urlencode({"model": model.name})
    return (
        Cell(
            f'<a href="/workers/{operator}"><code>{short(offer.operator)}</code></a>',
            title=f"{operator} at {written(offer.endpoint)}",
        ),
        Cell(
            f'<a href="{escape(link)}">{escape(written(model.name))}</a>',
            title=f"{written(model.name)}, {written(model.profile)}",
        ),
        Cell(escape(", ".join(model.kind_names))),
        Cell(SERVICES[model.service]),
        _with_steps(entry, money),
        Cell(money.price(model.price_per_million_output_tokens)),
        Cell(money.price(model.price_per_million_prompt_tokens)),
        Cell(money.price(model.price_per_thousand_steps)),
        Cell(f"{model.tokens_per_second:,}"),
        _slots(capacity_of(offer, model)),
    )


def _with_steps(entry: Entry, money: Money) -> Cell:
    """The price of output with its steps, where it comes from, and what the order goes by."""
    model, usual = entry.model, usual_jobs(entry.listed.signed.offer, entry.model)
    middle = money.price(price_with_steps(model, usual.steps_p50))
    high = money.token.number(price_with_steps(model, usual.steps_p90))
    if usual.source is Source.RECEIPTS:
        short_basis = f"{usual.jobs:,} receipts"
        basis = f"nine of ten jobs under {high}, by {usual.jobs:,} of its receipts"
    elif usual.source is Source.BENCHMARK:
        short_basis, basis = "estimate", "estimate, by its benchmark"
    else:
        short_basis, basis = "estimate", f"estimate, at {MEAN_STEPS} steps a canvas"
    if usual.source is not Source.ASSUMED:
        basis += f"; at {MEAN_STEPS} steps {money.token.number(blended_price(model))}"
    return Cell(f"{middle} <small>{short_basis}</small>", title=basis)


def _slots(places: EntryCapacity) -> Cell:
    if places.slots_free:
        return Cell(f"{places.slots_free} of {places.slots} free", "free")
    waits = f"busy, {places.queue_free} may wait" if places.queue_free else "full"
    return Cell(waits, "full")


def _charts(overview: Overview, money: Money) -> str:
    points = overview.samples
    drawn = (
        charts.bands(
            "Price of 1M tokens over the last day",
            [(one.at, one.prices) for one in points],
            money.token.number,
        ),
        charts.bands(
            "Tokens/s over the last day", [(one.at, one.speeds) for one in points], "{:,}".format
        ),
        charts.line(
            "Free slots over the last day",
            [(one.at, one.slots_free) for one in points],
            "{:,}".format,
        ),
    )
    days = overview.settled
    payments = sum(day.settled.payments for day in days)
    settled = charts.bars(
        f"{money.token.symbol} settled a day",
        [day.settled.amount for day in days],
        money.token.number,
        f"{counted(payments, 'payment')} on {counted(len(days), 'day')}",
    )
    return f'<section class="charts" aria-label="History">{"".join([*drawn, settled])}</section>'


def _samples_table(samples: Sequence[MarketSample], money: Money) -> str:
    """Return the charts' figures as a table, evenly chosen from the newest on."""
    every = -(-len(samples) // MAX_SHOWN_SAMPLES) or 1
    rows = (_sample(one, money) for one in samples[::-1][::every])
    shown = table(_SAMPLES_CAPTION, SAMPLE_COLUMNS, rows, "Nothing was recorded yet.")
    return f"<details><summary>Prices and speeds as a table</summary>\n{shown}</details>"


def _sample(one: MarketSample, money: Money) -> tuple[Cell, ...]:
    at = datetime.fromtimestamp(one.at, UTC)
    prices = ("–" if price is None else money.token.number(price) for price in one.prices)
    speeds = ("–" if speed is None else f"{speed:,}" for speed in one.speeds)
    time = f'<time datetime="{at.isoformat()}">{at:%m-%d %H:%M}</time>'
    return tuple(Cell(html) for html in (time, *prices, *speeds, f"{one.slots_free:,}"))


def _form(query: Query) -> str:
    options = "".join(
        f'<option value="{sort.value}"{" selected" if sort is query.sort else ""}>{label}</option>'
        for sort, label in ORDERS.items()
    )
    services = "".join(
        f'<option value="{value}"{" selected" if service is query.service else ""}>{label}</option>'
        for service, value, label in (
            (None, "", "either"),
            *((s, service_name(s), SERVICES[s]) for s in Service),
        )
    )
    model = escape(query.model or "")
    speed = "" if query.min_speed is None else str(query.min_speed)
    return f"""<form method="get" action="/">
<label>Model <input name="model" value="{model}" placeholder="name or digest"></label>
<label>Tokens a second, at least
<input name="min_speed" inputmode="numeric" value="{speed}"></label>
<label>Service <select name="service">{services}</select></label>
<label>Order <select name="sort">{options}</select></label>
<button>Show</button>
</form>"""


def _pager(query: Query, total: int) -> str:
    """Return links to the pages before and behind, if there are any."""
    last = min(query.offset + query.limit, total)
    if total <= query.limit and not query.offset:
        return ""
    links = []
    if query.offset:
        before = replace(query, offset=max(0, query.offset - query.limit))
        links.append(f'<a rel="prev" href="{escape(before.url)}">Page before</a>')
    if last < total:
        behind = replace(query, offset=query.offset + query.limit)
        links.append(f'<a rel="next" href="{escape(behind.url)}">Next page</a>')
    first = min(query.offset + 1, total)
    return f'<nav aria-label="Pages">{"".join(links)} {first:,} to {last:,} of {total:,}</nav>'


def _models_table(models: dict[str, Any], money: Money) -> str:
    rows = (
        (
            Cell(
                f'<a href="/?{escape(urlencode({"model": m["digest"]}))}">'
                f"{escape(written(', '.join(m['names'])))}</a>"
            ),
            Cell(f"<code>{m['digest'][:18]}…</code>", title=m["digest"]),
            Cell(f"{m['workers']:,}"),
            Cell(f"{m['slots_free']:,}"),
            Cell(money.price(m["lowest_blended_price_per_million_output_tokens"])),
            Cell(f"{m['fastest_tokens_per_second']:,}"),
            Cell(f"{m['max_context']:,}"),
        )
        for m in models["models"]
    )
    caption = "By digest: the name is what workers call it, the digest is what it is."
    if models["total"] > MAX_SHOWN_MODELS:
        caption += f" {MAX_SHOWN_MODELS:,} of {models['total']:,}, those of most workers."
    return table(caption, MODEL_COLUMNS, rows, "Nobody serves a model right now.")


def _how(way: WayIn) -> str:
    shown = escape(way.url)
    return f"""<h2>Connect to this market</h2>
<p>Save the market's <a href="{DEPLOYMENT}" download>deployment file</a>. It names chain, token and
terms, so compare it with what people you trust have. Your programs then talk to a gateway of your
own, with any OpenAI client:</p>
<pre><code>piecework client init --deployment deployment.json --index {shown}
piecework gateway</code></pre>
<h2>Run a worker</h2>
{_joining(way)}"""


def _joining(way: WayIn) -> str:
    shown = escape(way.url)
    if way.key is None:
        return f"""<p>With the same file. The first line writes a home with keys, settings and
prices, and registers. This index lists you once you are up:</p>
<pre><code>piecework worker init --deployment deployment.json --index {shown}
piecework worker start</code></pre>"""
    return f"""<p>One line asks for what is missing, suggests prices, registers, checks and
starts:</p>
<pre><code>piecework worker join {shown}{DESCRIPTOR}</code></pre>
<p>The market's descriptor is signed by <code>{address_hex(way.key)}</code>. Compare that with what
the market publishes elsewhere: whoever runs this index could show another one.</p>"""
