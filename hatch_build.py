"""What a wheel carries besides the packages: compiled contracts and frozen init code, beside the
module that reads them.

A checkout that is installed in place reads them from `contracts` and needs no copy.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

RELEASED = ("Disputes", "Escrow", "EvidenceVerifier", "WorkerRegistry")


class ContractArtifacts(BuildHookInterface[Any]):  # type: ignore[misc]
    """Put the files of `contracts` that the program reads into `piecework/chain`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files, except to an editable installation."""
        if version == "editable":
            return
        included = build_data["force_include"]
        included["contracts/artifacts"] = "piecework/chain/contract_artifacts"
        for name in RELEASED:
            file = f"{name}.initcode.hex"
            included[f"contracts/release/{file}"] = f"piecework/chain/contract_release/{file}"
