"""`piecework gateway keys`: who may spend through the gateway, and how much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piecework.commands import _common as common
from piecework.commands._client.home import Home, Json, existing

if TYPE_CHECKING:
    from piecework.base.amounts import Token
    from piecework.client.journal.api_keys import ApiKey
    from piecework.client.journal.store import Store
    from piecework_protocol.types import Timestamp

app = common.group()
_UNITS = {"h": 3600, "d": 86_400}
MAX_LIFETIME_S = 100 * 365 * 86_400

Name = Annotated[str, typer.Argument(help="What the key is called here. Callers never see it.")]


@app.callback()
def _keys() -> None:
    """Make, list and revoke the API keys of the gateway."""


@app.command()
def add(
    name: Name,
    *,
    per_day: Annotated[
        str | None, typer.Option(help="Most tokens that it may spend in a UTC day.")
    ] = None,
    per_month: Annotated[
        str | None, typer.Option(help="Most tokens that it may spend in a UTC month.")
    ] = None,
    max_price: Annotated[
        str | None, typer.Option(help="Most tokens that one of its jobs may cost.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="When it ends, such as 90d, 12h or 2027-01-31.")
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Make a key and print it. It is shown once, and only its hash is kept.

    From the first key on, every caller of the gateway needs one. A running gateway takes the key
    at once. The name of a revoked key may be used again. What was spent under it stays counted.
    """
    from piecework.client.gateway.keys import new_key
    from piecework.client.journal.records import Limits
    from piecework_protocol.types import Amount

    with _journal(home) as (store, token, now):
        ends = _ends(expires, now)
        amounts = [
            None if text is None else Amount(common.some_units(token, text))
            for text in (per_day, per_month, max_price)
        ]
        key, limits = new_key(), Limits(*amounts)
        common.guard(lambda: store.api_keys.add(name, key, limits, now=now, expires_at=ends))
    if json:
        common.print_json({"name": name, "key": key})
        return
    common.say(key)
    common.say("Keep it now: it is not shown again.", err=True)


@app.command("list")
def list_keys(*, home: Home = None, json: Json = False) -> None:
    """List the keys with their limits and what they have spent."""
    with _journal(home) as (store, token, now):
        rows = [_row(store, key, now) for key in common.guard(store.api_keys.all)]
    if json:
        common.print_json({"keys": rows, "token": common.token_json(token)})
        return
    for row in rows:
        common.say(f"{row['name']}  {row['state']}{_until(row['expires_at'])}")
        common.say(
            f"    day {_of(token, row['spent_today'], row['per_day'])}"
            f"  month {_of(token, row['spent_this_month'], row['per_month'])}"
            f"  held {token.format(row['held'])}"
            + (f"  a job at most {token.format(row['max_price'])}" if row["max_price"] else "")
        )
    if not rows:
        common.say("no API key", err=True)


@app.command()
def revoke(name: Name, *, home: Home = None) -> None:
    """Let nobody use a key any more.

    Requests that run go on to their end.
    """
    with _journal(home) as (store, _, now):
        common.guard(lambda: store.api_keys.revoke(name, now))
    common.say(f"{name} is revoked")


@contextmanager
def _journal(home: Any) -> Iterator[tuple[Store, Token, Timestamp]]:
    """The client's journal, without its keys: no password is needed."""
    from piecework.base.clock import SystemClock
    from piecework.chain.deployment import Deployment
    from piecework.chain.keystore import keystore_address
    from piecework.client.journal.store import Store
    from piecework_protocol.types import Timestamp, parse_address

    files = existing(home)
    deployment = common.guard(lambda: Deployment.load(files.deployment))
    payer = parse_address("0x" + common.guard(lambda: keystore_address(files.wallet)))
    store = common.guard(lambda: Store(files.store, deployment.domain, payer))
    try:
        yield store, deployment.payment_token, Timestamp(int(SystemClock().wall()))
    finally:
        store.close()


def exist(home: Any) -> bool:
    """Whether a key was ever made in a home. Then every caller of the gateway needs one."""
    with _journal(home) as (store, _, _):
        return common.guard(store.api_keys.exist)


def _ends(text: str | None, now: Timestamp) -> Timestamp:
    """The moment of an option such as "90d" or "2027-01-31". 0: never."""
    from piecework_protocol.types import Timestamp

    if text is None:
        return Timestamp(0)
    number, unit = text[:-1], text[-1:]
    if unit in _UNITS and number.isascii() and number.isdecimal() and len(number) < 8:
        moment = now + int(number) * _UNITS[unit]
    else:
        try:
            day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
        except ValueError:
            common.fail("--expires is a time such as 90d or 12h, or a day such as 2027-01-31", 2)
        moment = int((day + timedelta(days=1)).timestamp())  # the day itself is still good
    if not now < moment <= now + MAX_LIFETIME_S:
        common.fail("--expires lies in the past, or further than a hundred years ahead", 2)
    return Timestamp(moment)


def _row(store: Store, key: ApiKey, now: Timestamp) -> dict[str, Any]:
    from piecework_protocol.views import as_json

    used = store.budgets.used(key.name, now)
    state = "valid" if key.is_valid(now) else "revoked" if key.revoked_at else "expired"
    return {
        "name": key.name,
        "state": state,
        "created_at": key.created_at,
        "expires_at": key.expires_at or None,
        "revoked_at": key.revoked_at or None,
        **as_json(key.limits),
        "spent_today": used.day,
        "spent_this_month": used.month,
        "held": used.held,
    }


def _until(moment: int | None) -> str:
    if moment is None:
        return ""
    return f" until {datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"


def _of(token: Token, spent: int, limit: int | None) -> str:
    most = "" if limit is None else f" of {token.format(limit)}"
    return f"{token.format(spent)}{most}"
