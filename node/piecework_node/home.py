"""The files of a worker's home. Everything is 0600 in a 0700 folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Home:
    """Paths, nothing more."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def deployment(self) -> Path:
        return self.root / "deployment.json"

    @property
    def operator(self) -> Path:
        return self.root / "operator.json"

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

    def create(self) -> None:
        """Make the folder, for its owner alone."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)
