"""The signer's home and settings: `signer.toml` < PIECEWORK_SIGNER_* in the environment.

Limits of money are numbers of tokens or coins (`piecework.base.written_amounts`). The token is that
of the deployment file in the home.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import Field, field_validator

from piecework.base import settings
from piecework.base.amounts import Token, native_coin
from piecework.base.files import private_folder
from piecework.base.settings import Settings, Variables
from piecework.base.written_amounts import WrittenAmount, known_units
from piecework.chain.deployment import Deployment
from piecework.signer.book import DailyLimits
from piecework.signer.policy import Pins
from piecework_protocol.types import Address, parse_address

VARIABLES: Final = Variables(
    "PIECEWORK_SIGNER_", neighbours=("PIECEWORK_WORKER_", "PIECEWORK_CLIENT_")
)
MAX_ADDRESSES: Final = 32
MAX_INTEGER: Final = 2**128 - 1


class SignerConfig(Settings):
    """Everything that the owner of a signer may set. Every field has a bound."""

    payouts: tuple[str, ...] = Field(
        min_length=1,
        max_length=MAX_ADDRESSES,
        description="addresses that earnings may go to. The stake may belong to one of them, or "
        "to this key",
    )
    coins_to: tuple[str, ...] = Field(
        (),
        max_length=MAX_ADDRESSES,
        description="addresses that native coins may be sent to, such as that of the next operator",
    )
    leaving: bool = Field(
        False,
        description="whether the stake may be asked back and taken, if it belongs to this key. It "
        "counts in daily_tokens",
    )
    daily_signatures: int = Field(
        2_000_000, ge=1, le=2**40, description="of all kinds together. A canvas takes one"
    )
    daily_gas: WrittenAmount = Field(
        "0.02",
        description='native coins a day for gas and payments, such as "0.02" or "0.02 coin", '
        "counted at the highest fee that each transaction may pay",
    )
    data_wei_per_byte: int = Field(
        0,
        ge=0,
        le=MAX_INTEGER,
        description="wei that a byte of a transaction may cost on top of its gas. A rollup bills "
        "data so, and no transaction bounds that. It counts in daily_gas",
    )
    daily_tokens: WrittenAmount = Field(
        "0.0", description='tokens of stake a day, such as "10 USDC" or "10.0"'
    )
    users: tuple[int, ...] = Field(
        (),
        max_length=16,
        description="ids of users that may ask. Empty: the signer's own user alone",
    )

    @field_validator("payouts", "coins_to")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_address(text)
        return value

    def limits(self, token: Token) -> DailyLimits:
        """Return the limits of a day. token: the market's, which stake is counted in.

        Raises:
            SettingsError: an amount has no unit, or is of another token.
        """
        return DailyLimits(
            self.daily_signatures,
            known_units(self, "daily_gas", native_coin(), MAX_INTEGER),
            known_units(self, "daily_tokens", token, MAX_INTEGER),
            token,
        )

    @property
    def user_ids(self) -> frozenset[int]:
        """Users that may ask."""
        return frozenset(self.users or (os.getuid(),))

    def pins(self, operator: Address, deployment: Deployment) -> Pins:
        """What is signed with the key of this operator."""
        return Pins(
            operator,
            deployment,
            frozenset(map(parse_address, self.payouts)),
            frozenset(map(parse_address, self.coins_to)),
            self.leaving,
            self.data_wei_per_byte,
        )


@dataclass(frozen=True, slots=True)
class SignerHome:
    """Where each file of a signer is. Each has mode 0600, in a folder of mode 0700."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "signer.toml"

    @property
    def deployment(self) -> Path:
        """The market that this signer is for."""
        return self.root / "deployment.json"

    @property
    def key(self) -> Path:
        return self.root / "key.json"

    @property
    def book(self) -> Path:
        """What was used of each day."""
        return self.root / "limits.db"

    @property
    def statements(self) -> Path:
        """What was signed about jobs of the last days, and the number of the last offer."""
        return self.root / "statements.db"

    @property
    def record(self) -> Path:
        """What was signed."""
        return self.root / "signed.jsonl"

    @property
    def socket(self) -> Path:
        """Where it listens unless told otherwise."""
        return self.root / "socket"

    def create(self) -> None:
        """Make the folder, for its owner alone.

        Raises:
            FileError: it cannot be made, belongs to somebody else, or holds other files.
        """
        private_folder(self.root, marks=(self.key.name, self.config.name))


def load(
    home: SignerHome, environment: Mapping[str, str] | None = None, **flags: Any
) -> SignerConfig:
    """Return the settings of a signer's home.

    Raises:
        SettingsError: a setting is missing, unknown or out of bounds.
    """
    return settings.load(
        SignerConfig, VARIABLES, file=home.config, environment=environment, flags=flags
    )
