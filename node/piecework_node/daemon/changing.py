"""Changing the settings of a home: checked by the loader, written whole, taken up while it runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from piecework.base import settings as loader
from piecework.base.amounts import AmountError, Token
from piecework.base.errors import SettingsError
from piecework.base.files import read, write_private
from piecework.base.settings import MAX_FILE_BYTES
from piecework_node import config as settings
from piecework_node.card_settings import tables_with
from piecework_node.config import AMOUNTS, WorkerConfig
from piecework_node.errors import AdminError, ConfigError
from piecework_node.home import Home
from piecework_node.worker_amounts import CREDIT_FROM_PRICES

PRICES: Final = (
    "price_per_million_prompt_tokens",
    "price_per_million_output_tokens",
    "price_per_thousand_steps",
)
LIVE: Final = frozenset(
    (
        *PRICES,
        *CREDIT_FROM_PRICES,
        "stranger_credit",
        "min_deposit",
        "min_withdrawal_delay_s",
        "offer_lifetime_s",
        "open_fee",
        "top_up_fee",
        "close_fee",
        "min_top_up",
        "automatic_prices",
        "automatic_least_percent",
        "automatic_step_percent",
        "busy_power_w",
    )
)
"""Settings that a running worker takes up at once. The others wait for its next start."""
ELSEWHERE: Final[Mapping[str, str]] = {
    "payout": "the registry has it too. Run `piecework worker payout ADDRESS`",
    "cards": "a list of tables, one for each card. Edit config.toml and restart",
}
"""Settings that `worker set` leaves alone, and why."""
MAX_CHANGES: Final = 64


@dataclass(frozen=True, slots=True)
class ChangeReport:
    """What became of a change, by the names of the settings.

    Attributes:
        applied: In force for new offers. Jobs that run keep their terms.
        restart: In force from the next start.
        overridden: A flag or an environment variable of the worker goes first.
        offers_until: When the last offer with the old terms is over, in Unix time. None: no offer
            has changed.
    """

    applied: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    overridden: tuple[str, ...] = ()
    offers_until: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave.

        Raises:
            AdminError: it is something else.
        """
        until = body.get("offers_until")
        names = [body.get(name) for name in ("applied", "restart", "overridden")]
        if not all(isinstance(n, list) for n in names) or not isinstance(until, int | None):
            raise AdminError("the worker answers something else. Is it of another version?")
        applied, restart, overridden = (tuple(map(str, n or ())) for n in names)
        return cls(applied, restart, overridden, until)


@dataclass(frozen=True, slots=True)
class HomeChange:
    """A change of a home that has been checked and not been written yet."""

    home: Home
    text: str
    after: WorkerConfig
    named: frozenset[str]
    """Settings that the change is about."""
    names: frozenset[str]
    """Those of which the file says something else than before."""

    def write(self) -> None:
        """Put the new file in the place of the old one, in one step.

        Raises:
            FileError: it cannot be written, or the home is another user's. The old one stays.
        """
        self.home.create()
        write_private(self.home.config, self.text.encode(), replace=True)


def prepare_change(
    home: Home, token: Token, texts: Mapping[str, str], unset: Collection[str] = ()
) -> HomeChange:
    """Check a change of settings, as the next start would.

    Args:
        home: Whose settings.
        token: What amounts are counted in. A bare number is a number of tokens.
        texts: New values by name, written as in the environment.
        unset: Names that go back to their defaults.

    Raises:
        ConfigError: a setting has a command of its own or stands in the table of a card, or there
            are too many.
        SettingsError: a name does not exist, or the settings cannot be used with this change.
        FileError: the file cannot be read.
    """
    from piecework.base.settings_file import rewritten  # the console works without it

    named = {*texts, *unset}
    if len(named) > MAX_CHANGES:
        raise ConfigError(f"more than {MAX_CHANGES} settings in one change")
    for name in sorted(named & ELSEWHERE.keys()):
        raise ConfigError(f"{name}: {ELSEWHERE[name]}")
    before = settings.load(home.root, environment={})
    _check_cards(before, named)
    written = {
        name: _amount(name, text, token) if name in AMOUNTS else text
        for name, text in texts.items()
    }
    after = loader.change(WorkerConfig, home.config, written, unset)
    after.amounts(token)
    values = {name: getattr(after, name) for name in written}
    old = read(home.config, MAX_FILE_BYTES).decode("utf-8-sig")
    changed = frozenset(name for name in named if _differs(before, after, name))
    text = rewritten(WorkerConfig, old, values, unset)
    return HomeChange(home, text, after, frozenset(named), changed)


def _check_cards(before: WorkerConfig, named: Collection[str]) -> None:
    """Refuse what would be written beside the table of a card that has a value of its own."""
    for name in sorted(named):
        places = tables_with(before.cards, name)
        if places:
            raise ConfigError(
                f"{name}: in config.toml it stands in {' and '.join(places)}. Edit it there and "
                "restart"
            )


def _amount(name: str, text: str, token: Token) -> str:
    """An amount as settings have it, with its unit."""
    try:
        return token.write(token.parse(text))
    except AmountError as error:
        raise SettingsError(f"{name}: {error}") from None


def _differs(before: WorkerConfig, after: WorkerConfig, name: str) -> bool:
    """Whether a setting is another, or follows something else now."""
    was_set, is_set = name in before.model_fields_set, name in after.model_fields_set
    return was_set != is_set or bool(getattr(before, name) != getattr(after, name))


def with_live(running: WorkerConfig, wanted: WorkerConfig) -> WorkerConfig:
    """Return the settings of a running worker with the live ones of another.

    Raises:
        SettingsError: the two do not go together without a restart.
    """
    kept = {n: getattr(running, n) for n in running.model_fields_set - LIVE}
    taken = {n: getattr(wanted, n) for n in wanted.model_fields_set & LIVE}
    try:
        return settings.check(kept | taken)
    except SettingsError as error:
        raise SettingsError(f"only with a restart: {error}") from None
