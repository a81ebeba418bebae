"""The files of a worker's home. Each has mode 0600, in a folder of mode 0700."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from piecework.base.files import private_folder
from piecework_protocol.types import Address, address_hex


@dataclass(frozen=True, slots=True)
class Home:
    """Where each file is."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def deployment(self) -> Path:
        return self.root / "deployment.json"

    @property
    def market(self) -> Path:
        """The market's descriptor that this home accepted, and whose key signed it."""
        return self.root / "market.json"

    @property
    def operator(self) -> Path:
        return self.root / "operator.json"

    @property
    def next(self) -> Home:
        """Where the new key waits while an operator key is being replaced."""
        return Home(self.root / "next")

    def retired(self, operator: Address) -> Home:
        """The home of an operator key that was replaced."""
        return Home(self.root / "retired" / address_hex(operator).lower())

    @property
    def sealing(self) -> Path:
        """The secret that wraps the journal's sealing keys, under the home's password."""
        return self.root / "sealing.json"

    @property
    def certificate(self) -> Path:
        return self.root / "tls.pem"

    @property
    def certificate_key(self) -> Path:
        return self.root / "tls.key"

    @property
    def journal(self) -> Path:
        return self.root / "journal.db"

    @property
    def speeds(self) -> Path:
        return self.root / "bench.json"

    @property
    def prices(self) -> Path:
        """What automatic prices ask, and what a token took."""
        return self.root / "prices.json"

    @property
    def digests(self) -> Path:
        """What the files of the checkpoint hash to, so that each is read for that once."""
        return self.root / "digests.json"

    @property
    def steps(self) -> Path:
        """The folder of the canvases whose steps are kept, sealed."""
        return self.root / "steps"

    def create(self) -> None:
        """Make the folder, for its owner alone.

        Raises:
            FileError: it cannot be made, belongs to somebody else, or holds other files.
        """
        private_folder(self.root, marks=(self.operator.name, self.journal.name))
