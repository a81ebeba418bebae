"""The explorer: one self-contained page, rendered here, readable without JavaScript. Pure.

Everything that a worker wrote (names, endpoints, profiles) is escaped; the page loads nothing and
runs nothing (see `CONTENT_SECURITY_POLICY`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any
from urllib.parse import urlencode

from piecework.base.amounts import Token
from piecework.market.listing import Entry, Query, Sort, blended_price
from piecework_protocol.objects import Service
from piecework_protocol.service import service_name
from piecework_protocol.types import Timestamp, to_hex
from piecework_protocol.usual import MEAN_STEPS, Source, price_with_steps, usual_jobs

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_SERVICES = {Service.REPLAYABLE: "replayable", Service.BEST_EFFORT: "best effort"}

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --paper: #fff;
  --card: #f6f8fa;  --mark: #0550ae; --good: #116329; --bad: #82071e }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --paper: #0d1117;  --card: #151b23; --mark: #79c0ff; --good: #56d364; --bad: #ff938a } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif }
main, header, footer { max-width: 76rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
p { margin: .3rem 0; color: var(--soft) } a { color: var(--mark) }
.facts { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; padding: 0; list-style: none }
.facts li { background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem;
  padding: .5rem 1rem }
.facts b { display: block; font-size: 1.3rem }
form { display: flex; flex-wrap: wrap; gap: .75rem; align-items: end; margin: 1rem 0 }
label { display: grid; gap: .2rem; font-size: .85rem; color: var(--soft) }
input, select, button { font: inherit; color: inherit; background: var(--card);
  border: 1px solid var(--line);
  border-radius: .4rem; padding: .35rem .6rem; min-height: 2.75rem }
:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
caption { text-align: left; padding: .6rem .8rem; color: var(--soft) }
th, td { text-align: left; padding: .5rem .8rem; border-top: 1px solid var(--line);
         white-space: nowrap }
td.n, th.n { text-align: right } th { background: var(--card) }
td small { display: block; max-width: 18rem; white-space: normal; color: var(--soft);
  overflow-wrap: anywhere }
code { font: .85em ui-monospace, monospace }
.free { color: var(--good) } .full { color: var(--bad) }
"""


def render(
    entries: Sequence[Entry], models: dict[str, Any], query: Query, now: Timestamp, token: Token
) -> str:
    """The page for a query: figures, models, and one row for each model at each worker."""
    workers = {e.listed.signed.offer.operator for e in entries}
    slots = {e.listed.signed.offer.operator: e.listed.signed.offer.slots_free for e in entries}
    at = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    facts = (
        (len(workers), "workers"),
        (len(models["models"]), "models"),
        (sum(slots.values()), "free slots"),
    )
    figures = "".join(f"<li><b>{number}</b> {label}</li>" for number, label in facts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Piecework offers</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>Piecework offers</h1>
<p>Text by the canvas on other people's GPUs. Every offer below is signed by a bonded worker
and expires within minutes. This index is only a cache: clients verify each offer against its
signature and the chain.</p>
</header>
<main>
<ul class="facts">{figures}</ul>
{_form(query)}
{_offers_table(entries, query, now, token)}
{_models_table(models, token)}
</main>
<footer><p>As of
<time datetime="{datetime.fromtimestamp(now, UTC).isoformat()}">{at}</time>. Prices are in
{escape(token.symbol)}, speeds as the workers measured them. For programs:
<a href="/v1/offers">/v1/offers</a>, <a href="/v1/models">/v1/models</a>,
<a href="/v1/workers">/v1/workers</a>.</p></footer>
</body>
</html>
"""


def _form(query: Query) -> str:
    options = "".join(
        f'<option value="{sort.value}"{" selected" if sort is query.sort else ""}>{label}</option>'
        for sort, label in ((Sort.PRICE, "cheapest first"), (Sort.SPEED, "fastest first"))
    )
    services = "".join(
        f'<option value="{value}"{" selected" if service is query.service else ""}>{label}</option>'
        for service, value, label in (
            (None, "", "either"),
            *((s, service_name(s), _SERVICES[s]) for s in Service),
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


def _offers_table(entries: Sequence[Entry], query: Query, now: Timestamp, token: Token) -> str:
    rows = "\n".join(_row(entry, now, token) for entry in entries[: query.limit])
    if not rows:
        rows = '<tr><td colspan="10">No live offer fits.</td></tr>'
    heads = (
        ("Worker", ""),
        ("Model", ""),
        ("Service", ""),
        ("Output, 1M tokens", "n"),
        ("Prompt, 1M tokens", "n"),
        ("1,000 steps", "n"),
        ("Output with its steps, 1M tokens", "n"),
        ("Tokens/s", "n"),
        ("Slots", ""),
        ("Expires", "n"),
    )
    head = "".join(f'<th scope="col" class="{kind}">{label}</th>' for label, kind in heads)
    return f"""<h2>Offers</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Offers"><table>
<caption>One row for each model at each worker. "Output with its steps" is
what a million output tokens cost together with the denoising steps that they take, as the worker
says of its own jobs: a claim, which clients hold against their bills. "Cheapest first" compares all
workers at the same number of steps. Replayable: the client's seed decides the text and each receipt
commits to how it came about; best effort: neither.
</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody></table></div>"""


def _row(entry: Entry, now: Timestamp, token: Token) -> str:
    offer, model = entry.listed.signed.offer, entry.model
    operator = to_hex(offer.operator)
    state = ("free", f"{offer.slots_free} of {offer.slots} free")
    if not offer.slots_free:
        state = ("full", f"busy, {offer.queue_free} may wait" if offer.queue_free else "full")
    link = "/?" + urlencode({"model": model.name, "sort": "price"})
    return (
        f'<tr><td><code title="{operator}">{operator[:10]}…{operator[-4:]}</code><br>'
        f"<small>{escape(offer.endpoint)}</small></td>"
        f'<td><a href="{escape(link)}">{escape(model.name)}</a><br>'
        f"<small>{', '.join(model.kind_names)} · {escape(model.profile)}</small></td>"
        f"<td>{_SERVICES[model.service]}</td>"
        f'<td class="n">{token.number(model.price_per_million_output_tokens)}</td>'
        f'<td class="n">{token.number(model.price_per_million_prompt_tokens)}</td>'
        f'<td class="n">{token.number(model.price_per_thousand_steps)}</td>'
        f'<td class="n">{_with_steps(entry, token)}</td>'
        f'<td class="n">{model.tokens_per_second:,}</td>'
        f'<td class="{state[0]}">{state[1]}</td>'
        f'<td class="n">in {_duration(offer.expires_at - now)}</td></tr>'
    )


_BASES = {
    Source.BENCHMARK: "estimate, by its benchmark",
    Source.ASSUMED: f"estimate, at {MEAN_STEPS} steps a canvas",
}


def _with_steps(entry: Entry, token: Token) -> str:
    """The price of output with its steps, where it comes from, and what the order goes by."""
    model, usual = entry.model, usual_jobs(entry.listed.signed.offer, entry.model)
    middle = token.number(price_with_steps(model, usual.steps_p50))
    high = token.number(price_with_steps(model, usual.steps_p90))
    basis = _BASES.get(usual.source) or f"nine of ten under {high}, {usual.jobs:,} receipts"
    compared = ""
    if usual.source is not Source.ASSUMED:
        compared = f"; at {MEAN_STEPS} steps {token.number(blended_price(model))}"
    return f"{middle}<small>{basis}{compared}</small>"


def _models_table(models: dict[str, Any], token: Token) -> str:
    rows = "\n".join(
        f"<tr><td>{escape(', '.join(m['names']))}</td><td><code>{m['digest'][:18]}…</code></td>"
        f'<td class="n">{m["workers"]}</td><td class="n">{m["slots_free"]}</td>'
        f'<td class="n">{token.number(m["lowest_blended_price_per_million_output_tokens"])}</td>'
        f'<td class="n">{m["fastest_tokens_per_second"]:,}</td><td '
        f'class="n">{m["max_context"]:,}</td></tr>'
        for m in models["models"]
    )
    if not rows:
        rows = '<tr><td colspan="7">Nobody serves a model right now.</td></tr>'
    heads = (
        "Digest",
        "Workers",
        "Free slots",
        f"From, 1M tokens at {MEAN_STEPS} steps",
        "Fastest, tokens/s",
        "Context, tokens",
    )
    head = "".join(
        f'<th scope="col"{" class=n" if i else ""}>{h}</th>' for i, h in enumerate(heads)
    )
    return f"""<h2>Models</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Models"><table>
<caption>By digest: the name is what workers call it, the digest is what it is.</caption>
<thead><tr><th scope="col">Name</th>{head}</tr></thead>
<tbody>
{rows}
</tbody></table></div>"""


def _duration(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"
