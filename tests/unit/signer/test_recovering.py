"""`piecework worker recover` with a signer: it knows which offer was the last one."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.chain.errors import SignerAway
from piecework.signer.remote import RemoteSigner
from piecework_node.home import Home
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.operations.recover import recover
from piecework_node.operations.registration import prepare_home
from piecework_protocol.types import Timestamp, Uint64, to_hex
from tests.support.chain.signers import KEY, MARKET, PAYOUT, serving
from tests.unit.signer.test_statements import NOW, OFFER


async def test_the_next_offer_follows_the_signers_last_and_without_it_nothing_is_recovered(
    tmp_path: Path,
) -> None:
    home, secret = Home(tmp_path / "worker"), "secret"
    home.create()
    values = {"payout": to_hex(PAYOUT), "signer": f"unix:{tmp_path / 'socket'}"}
    prepare_home(home, MARKET, values, secret, Timestamp(NOW), remote=KEY.address)
    await (await SqliteJournal.open(home.journal, MARKET.domain, KEY.address)).close()

    with pytest.raises(SignerAway):
        await recover(home.root)
    async with serving(tmp_path):
        assert (await recover(home.root))[-1][0] == "found"
        signer = RemoteSigner(tmp_path / "socket", KEY.address, MARKET)
        await signer.typed(MARKET.domain, OFFER.replace(sequence=Uint64(7)))
        await signer.close()
    with pytest.raises(SignerAway):
        await recover(home.root)
    async with serving(tmp_path):
        steps = dict(await recover(home.root))
        assert "the signer" in steps["found"]
        assert steps["offers"] == "the next one has number 8"
        assert (await recover(home.root))[-1][0] == "found"
