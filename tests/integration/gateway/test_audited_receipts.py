"""Receipts as the command shows them are audited by others, with the published types alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.messages import encode_typed_data

from piecework.commands._client.views import receipts_view
from tests.support.chain.fake_chain import FakeChain
from tests.support.client.client_side import MONEY, PAYER, FakeClock, ask, collect, open_client
from tests.support.client.fake_worker import FakeWorker

RELEASE = Path(__file__).resolve().parents[3] / "contracts" / "release"
PUBLISHED = json.loads((RELEASE / "typed-data.json").read_text())


def in_snake_case(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name)


def typed(name: str, values: dict[str, Any], shown: dict[str, Any]) -> Any:
    """The message that was signed, out of what the command shows."""
    of_chain = {
        "chainId": int(shown["domain"]["chain_id"]),
        "verifyingContract": shown["domain"]["verifying_contract"],
    }
    members = PUBLISHED[name]["types"][name]
    message = {member["name"]: values[in_snake_case(member["name"])] for member in members}
    domain = PUBLISHED[name]["domain"] | of_chain
    return encode_typed_data(full_message={**PUBLISHED[name], "domain": domain, "message": message})


def signer_of(name: str, values: dict[str, Any], shown: dict[str, Any]) -> str:
    signed = typed(name, values, shown)
    return str(Account.recover_message(signed, signature=values["signature"])).lower()


async def test_every_receipt_and_voucher_that_is_shown_leads_to_its_signer(tmp_path: Path) -> None:
    chain, clock = FakeChain(), FakeClock()
    chain.deposit(PAYER.address, MONEY)
    async with FakeWorker(chain, clock), open_client(tmp_path, chain, clock) as client:
        await collect(client.run(ask()))
        view = await receipts_view(client, None)
    shown = json.loads(json.dumps(view))
    assert shown["failed"] == 0 and len(shown["receipts"]) > 1
    for receipt in shown["receipts"]:
        assert signer_of("Receipt", receipt, shown) == receipt["operator"].lower()
    (voucher,) = shown["vouchers"]
    assert signer_of("Voucher", voucher, shown) == voucher["authorizer"].lower()
    assert voucher["receipts_root"] == shown["receipts"][0]["receipts_root"]
    first, second = (r for r in shown["receipts"][:2])
    assert second["previous"] == first["digest"], "receipts of a job are a chain"
