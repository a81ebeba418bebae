"""What every page has: the frame, the style, the script that keeps it live, and small parts. Pure.

Everything that a worker wrote (names, endpoints, profiles) is escaped. A page loads nothing from
elsewhere. Its one script is named by its hash (`CONTENT_SECURITY_POLICY`), and all that it does is
to ask for the same page again. It leaves alone the part in which somebody reads: where the focus or
a selection is, or something was opened. Without it the page says the same and stands still.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from html import escape
from typing import Final

from piecework.base.amounts import Token
from piecework.base.text import one_line
from piecework.market.history import SettledSum
from piecework_protocol.types import Address, Timestamp, to_hex

REFRESH_S: Final = 10
_EXACT: Final = Context(prec=100, rounding=ROUND_HALF_EVEN)
"""The usual context has 28 digits, and a price may have more."""
_MAX_TEXT: Final = 256

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --paper: #fff;
  --card: #f6f8fa;  --mark: #0550ae; --good: #116329; --bad: #82071e }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --paper: #0d1117;  --card: #151b23; --mark: #79c0ff; --good: #56d364; --bad: #ff938a } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, sans-serif }
main, header, footer { max-width: 90rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
p { margin: .3rem 0; color: var(--soft); max-width: 60rem } a { color: var(--mark) }
nav a { margin-right: 1rem }
.facts { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; padding: 0; list-style: none }
.facts li { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .5rem 1rem }
.facts b { display: block; font-size: 1.3rem }
form { display: flex; flex-wrap: wrap; gap: .75rem; align-items: end; margin: 1rem 0 }
label { display: grid; gap: .2rem; font-size: .85rem; color: var(--soft); min-width: 0 }
input, select, button { font: inherit; color: inherit; background: var(--card); max-width: 100%;
  border: 1px solid var(--line); border-radius: .4rem; padding: .35rem .6rem; min-height: 2.75rem }
:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  border: 1px solid var(--line) }
caption { text-align: left; padding: .4rem 0; color: var(--soft) }
th, td { text-align: left; padding: .5rem .6rem; border-top: 1px solid var(--line) }
@media (min-width: 84.01rem) { th, td { font-size: .875rem; padding: .5rem .35rem } }
td.n, th.n { text-align: right } th { background: var(--card) }
td a { overflow-wrap: anywhere } td code { white-space: nowrap }
small { color: var(--soft) }
code { font: .85em ui-monospace, monospace }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem 1rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere }
.free { color: var(--good) } .full { color: var(--bad) }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
  gap: 1rem }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem 1rem; min-width: 0 }
figure svg { width: 100%; height: 5rem; display: block }
figure polyline { fill: none; stroke: var(--mark); stroke-width: 2;
  vector-effect: non-scaling-stroke }
figure rect, figure polygon { fill: var(--mark) }
figure polygon { fill-opacity: .3; stroke: var(--mark); stroke-opacity: .3; stroke-width: 1;
  vector-effect: non-scaling-stroke }
figure polygon.all { fill-opacity: .15 } figure polyline.edge { stroke-width: 1; opacity: .5 }
details summary { cursor: pointer; min-height: 2rem }
@media (max-width: 84rem) {
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
  table, tbody, tr, td, caption { display: block; width: 100% }
  table { border: 0 }
  tr { border: 1px solid var(--line); border-radius: .5rem; margin: .75rem 0; padding: .25rem 0 }
  td, td.n { display: flex; justify-content: space-between; gap: 1rem; text-align: right;
    white-space: normal; overflow-wrap: anywhere; max-width: none; border: 0;
    padding: .25rem .75rem }
  td::before { content: attr(data-label); color: var(--soft); text-align: left; flex: none }
  td > * { min-width: 0 }
}
"""

SCRIPT: Final = """
"use strict";
(() => {
  const every = REFRESH_S * 1000;
  const isRead = (part) => part.contains(document.activeElement)
    || part.querySelector("details[open]")
    || (String(getSelection()) && getSelection().containsNode(part, true));
  const refresh = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (!answer.ok) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("main > div, footer")) {
        const next = fresh.querySelector(part.id ? `#${part.id}` : "footer");
        if (next && !isRead(part) && part.innerHTML !== next.innerHTML) part.replaceWith(next);
      }
    } catch { /* The page stays as it is until the index answers again. */ }
  };
  setInterval(refresh, every);
})();
""".replace("REFRESH_S", str(REFRESH_S))

_HASH: Final = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
CONTENT_SECURITY_POLICY: Final = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Money:
    """How the explorer writes amounts.

    Attributes:
        token: What the amounts are in.
        usd: What the operator of the index says one token is worth, or None. Nobody else is asked.
        marked: They said it with the market's descriptor that they serve.
    """

    token: Token
    usd: Decimal | None = None
    marked: bool = False

    def price(self, units: int) -> str:
        """Return an amount as HTML: the number of tokens, and dollars behind it if known."""
        number = self.token.number(units)
        return number if self.usd is None else f"{number} <small>{self.dollars(units)}</small>"

    def dollars(self, units: int) -> str:
        """Return an amount in dollars, "–" if nobody said what a token is worth."""
        if self.usd is None:
            return "–"
        value = _EXACT.multiply(Decimal(units).scaleb(-self.token.decimals, _EXACT), self.usd)
        cent = Decimal("0.01") if value >= 1 else Decimal("0.0001")
        return f"${value.quantize(cent, context=_EXACT):,}"


@dataclass(frozen=True, slots=True)
class Column:
    """The heading of a column. `number`: its cells stand at the right."""

    label: str
    number: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell. `html` is escaped already. `title` is not, and is shown on hovering."""

    html: str
    state: str = ""
    title: str = ""


def page(title: str, intro: str, parts: Mapping[str, str], now: Timestamp, money: Money) -> str:
    """Return a whole page. `title` is text. `intro` and the parts, by their names, are HTML.

    A part is what the script replaces at once. A page has the same parts each time.
    """
    body = "\n".join(f'<div id="{name}">\n{html}\n</div>' for name, html in parts.items())
    at = datetime.fromtimestamp(now, UTC)
    shown = at.strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{intro}
</header>
<main>
{body}
</main>
<footer><p>As of <time datetime="{at.isoformat()}">{shown}</time>. Prices are in
{escape(money.token.symbol)}{_worth(money)}, speeds as the workers measured them. For programs:
<a href="/v1/offers">/v1/offers</a>, <a href="/v1/models">/v1/models</a>,
<a href="/v1/workers">/v1/workers</a>, <a href="/v1/history">/v1/history</a>.</p></footer>
<script>{SCRIPT}</script>
</body>
</html>
"""


def facts(*pairs: tuple[str, str]) -> str:
    """Return figures with their labels. The figures are HTML."""
    items = "".join(f"<li><b>{figure}</b> {escape(label)}</li>" for figure, label in pairs)
    return f'<ul class="facts">{items}</ul>'


def settled_facts(paid: SettledSum, money: Money) -> tuple[tuple[str, str], ...]:
    """Return what was settled for `facts`. What workers paid to themselves stands apart."""
    symbol = money.token.symbol
    earned = (money.price(paid.amount), f"{symbol} settled on chain")
    if not paid.own_payments:
        return (earned,)
    return (earned, (money.price(paid.own_amount), f"{symbol} that workers paid to themselves"))


def table(
    caption: str, columns: Sequence[Column], rows: Iterable[Sequence[Cell]], empty: str
) -> str:
    """Return a table. On a narrow screen each row is a card with the headings beside its values."""
    head = "".join(f'<th scope="col"{_kind(c, "")}>{escape(c.label)}</th>' for c in columns)
    lines = "\n".join(f"<tr>{''.join(map(_cell, columns, row))}</tr>" for row in rows)
    if not lines:
        lines = f'<tr><td colspan="{len(columns)}">{escape(empty)}</td></tr>'
    return f"""<table>
<caption>{escape(caption)}</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{lines}
</tbody></table>"""


def written(text: str) -> str:
    """Return what a worker wrote as one line, without what drives or deceives a reader."""
    return one_line(text, _MAX_TEXT)


def short(operator: Address) -> str:
    """Return an address in short form."""
    text = to_hex(operator)
    return f"{text[:10]}…{text[-4:]}"


def counted(number: int, what: str) -> str:
    """Return a number of things in words. `what` is one of them."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def duration(seconds: int) -> str:
    """Return a time in the largest unit that says enough."""
    if seconds < 120:
        return f"{seconds} s"
    minutes = seconds // 60
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 2880 else f"{minutes // 1440} days"


def _worth(money: Money) -> str:
    if money.usd is None:
        return ""
    who = "the market's descriptor says" if money.marked else "whoever runs this index set them"
    return f", dollars as {who} (1 token is ${money.usd.normalize():f})"


def _cell(column: Column, cell: Cell) -> str:
    title = f' title="{escape(cell.title)}"' if cell.title else ""
    label = escape(column.label)
    return (
        f'<td data-label="{label}"{_kind(column, cell.state)}{title}><span>{cell.html}</span></td>'
    )


def _kind(column: Column, state: str) -> str:
    names = " ".join(filter(None, ("n" if column.number else "", state)))
    return f' class="{names}"' if names else ""
