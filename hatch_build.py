"""What a wheel carries besides the packages: the compiled contracts, beside the module that reads
them.

A checkout that is installed in place reads them from `contracts/artifacts` and needs no copy.
"""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ContractArtifacts(BuildHookInterface[Any]):  # type: ignore[misc]
    """Put `contracts/artifacts` into `piecework/chain/contract_artifacts`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folder, except to an editable installation."""
        if version != "editable":
            build_data["force_include"]["contracts/artifacts"] = (
                "piecework/chain/contract_artifacts"
            )
