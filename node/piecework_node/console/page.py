"""The console as a page: readable without script, refreshed by a small one of our own. Pure.

Nothing is loaded from elsewhere. Every text is escaped.
"""

from __future__ import annotations

from html import escape
from typing import Final

from piecework_node.console.model import Snapshot
from piecework_node.console.panels import Panel, clock, panels

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
WIDE: Final = frozenset({"hours", "days", "models", "clients", "canvases", "test", "alerts"})
"""Panels that take the whole width, or half of a very wide window."""
HALF: Final = frozenset({"jobs", "refusals"})
"""Panels that take half of the width."""
UNBROKEN: Final = 16
"""Characters of a value that is never broken into two lines."""

SCRIPT: Final = """\
"use strict";
const EVERY_MS = 2000;
const said = document.getElementById("live");
function busy(section) {
  const chosen = getSelection();
  return section.contains(document.activeElement) ||
    (chosen && !chosen.isCollapsed && section.contains(chosen.anchorNode));
}
async function refresh() {
  try {
    const answer = await fetch("/console", { cache: "no-store" });
    if (!answer.ok) throw new Error(`the worker answers ${answer.status}`);
    const next = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const section of document.querySelectorAll("main section")) {
      const fresh = next.getElementById(section.id);
      if (fresh && fresh.innerHTML !== section.innerHTML && !busy(section)) {
        section.innerHTML = fresh.innerHTML;
      }
    }
    document.querySelector("time").outerHTML = next.querySelector("time").outerHTML;
    if (said.textContent !== "live") said.textContent = "live";
  } catch (error) {
    const text = `not live: ${error.message}`;
    if (said.textContent !== text) said.textContent = text;
  }
  setTimeout(refresh, EVERY_MS);
}
setTimeout(refresh, EVERY_MS);
"""

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --paper: #fff;
  --card: #f6f8fa; --mark: #0550ae }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --paper: #0d1117; --card: #151b23; --mark: #79c0ff } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.45 system-ui, sans-serif }
header { padding: 1rem; display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; align-items: baseline }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.05rem; margin: 0 0 .5rem }
p { margin: 0; color: var(--soft) }
main { display: grid; gap: 1rem; padding: 0 1rem 1rem; align-items: start;
  grid-template-columns: minmax(0, 1fr) }
@media (min-width: 44rem) { main { grid-template-columns: repeat(2, minmax(0, 1fr)) }
  .half, .wide { grid-column: span 2 } }
@media (min-width: 86rem) { main { grid-template-columns: repeat(4, minmax(0, 1fr)) }
  #worker { grid-row: span 2 } .wide { grid-column: span 4 } }
@media (min-width: 120rem) { main { grid-template-columns: repeat(8, minmax(0, 1fr)) }
  section { grid-column: span 2 } .half, .wide { grid-column: span 4 } }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .9rem 1rem; min-width: 0 }
section > p { margin-top: .5rem; font-size: .9rem }
dl { display: grid; grid-template-columns: minmax(8rem, 2fr) 3fr; gap: .25rem 1rem; margin: 0 }
dt { color: var(--soft); overflow-wrap: anywhere }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem .6rem; border-top: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere }
thead th { border-top: 0; color: var(--soft); font-weight: 600 }
:is(th, td):first-child { padding-left: 0 } :is(th, td):last-child { padding-right: 0 }
.n { text-align: right } .n, .k { white-space: nowrap; overflow-wrap: normal }
.bar { white-space: nowrap; letter-spacing: -.05em }
.screen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px }
@media (max-width: 52rem) {
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
  table, tbody { display: block }
  tr { border-top: 1px solid var(--line); padding: .4rem 0; display: grid; gap: .1rem 1.5rem;
    grid-template-columns: repeat(2, minmax(0, 1fr)) }
  tbody tr:first-child { border-top: 0 }
  td, td.n { border: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0 .5rem;
    justify-content: space-between;
    text-align: right; grid-column: 1 / -1 }
  td.n { grid-column: auto } td:first-child { font-weight: 600 }
  td::before { content: attr(data-label); color: var(--soft); text-align: left; flex: none }
}
"""


def render(shown: Snapshot) -> str:
    """Return the whole page."""
    body = "".join(map(_section, panels(shown)))
    state = escape(shown.state)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{state} – Piecework worker</title>
<noscript><meta http-equiv="refresh" content="5"></noscript>
<style>{_STYLE}</style>
<script src="/console/live.js" defer></script>
</head>
<body>
<header><h1>Piecework worker</h1>
<p>As of <time>{clock(shown.at)} UTC</time>, <span id="live" role="status">not live yet</span></p>
</header>
<main>{body}</main>
</body>
</html>
"""


def _section(panel: Panel) -> str:
    key, width = panel.key, _width(panel.key)
    if not panel.rows:
        inside = f"<p>{escape(panel.empty)}</p>"
    elif not any(panel.columns):
        inside = "<dl>" + "".join(_fact(*row) for row in panel.rows) + "</dl>"
    else:
        inside = _table(panel)
    note = f"<p>{escape(panel.note)}</p>" if panel.note and panel.rows else ""
    return (
        f'<section id="{key}"{width} aria-labelledby="{key}-title">'
        f'<h2 id="{key}-title">{escape(panel.title)}</h2>{inside}{note}</section>'
    )


def _width(key: str) -> str:
    return ' class="wide"' if key in WIDE else ' class="half"' if key in HALF else ""


def _fact(label: str, value: str) -> str:
    return f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>"


def _table(panel: Panel) -> str:
    """A table whose rows are cards where the window is narrow. The roles outlive that."""
    heads = "".join(
        f'<th role="columnheader" scope="col"{_class(panel, i)}>{_head(name)}</th>'
        for i, name in enumerate(panel.columns)
    )
    rows = "".join(
        '<tr role="row">'
        + "".join(
            f'<td role="cell"{_class(panel, i)} data-label="{escape(panel.columns[i])}">'
            f"{_cell(value)}</td>"
            for i, value in enumerate(row)
        )
        + "</tr>"
        for row in panel.rows
    )
    return (
        f'<table role="table" aria-labelledby="{panel.key}-title">'
        f'<thead role="rowgroup"><tr role="row">{heads}</tr></thead>'
        f'<tbody role="rowgroup">{rows}</tbody></table>'
    )


def _head(name: str) -> str:
    return escape(name) or '<span class="screen">State</span>'


def _class(panel: Panel, column: int) -> str:
    return ' class="n"' if column in panel.numbers else ""


def _cell(value: str) -> str:
    """A bar is for the eye. The step beside it says the same."""
    if value.startswith(("█", "░")):
        return f'<span class="bar" aria-hidden="true">{escape(value)}</span>'
    kept = ' class="k"' if len(value) <= UNBROKEN else ""
    return f"<span{kept}>{escape(value)}</span>"
