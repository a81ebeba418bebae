"""A client takes the file of its market's next deployment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from piecework.chain.deployment import Deployment
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.chain.errors import ChainError
from piecework.chain.sending.deploy import deploy
from piecework.client.config import ClientHome
from piecework.client.errors import HomeError
from piecework.client.moving import move
from piecework_protocol.types import Address, Amount, Seconds
from tests.support.chain.chains import MIN_STAKE, POLL_S, UNBONDING_DELAY_S, deployed

pytestmark = pytest.mark.process


def client_of(folder: Path, deployment: Deployment) -> ClientHome:
    """A home with a wallet, whatever is in it."""
    home = ClientHome(folder / "client")
    home.create()
    home.wallet.write_text("{}")
    deployment.save(home.deployment)
    return home


async def test_a_client_moves_once_and_keeps_the_earlier_file(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    async with deployed(embedded_chain) as market:
        before = market.deployment
        after = await deploy(
            embedded_chain.url,
            embedded_chain.faucet,
            min_stake=MIN_STAKE,
            unbonding_delay_s=Seconds(UNBONDING_DELAY_S + 1),
            token=before.token,
            poll_s=POLL_S,
        )
    home, file = client_of(tmp_path, before), tmp_path / "next.json"
    after.save(file)
    moved = await move(home, file)
    assert moved.new and moved.earlier is not None
    assert Deployment.load(moved.earlier) == before
    assert Deployment.load(home.deployment) == after
    assert ClientHome(home.path, moved.earlier).deployment == moved.earlier
    again = await move(home, file)
    assert (again.new, again.earlier) == (False, None)


async def test_a_client_does_not_move_to_another_token_chain_or_nothing(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    async with deployed(embedded_chain) as market:
        before = market.deployment
    home, file = client_of(tmp_path, before), tmp_path / "next.json"
    for other, kind in (
        (replace(before, token=Address(b"\x07" * 20)), HomeError),
        (replace(before, chain_id=before.chain_id + 1), HomeError),
        (replace(before, min_stake=Amount(MIN_STAKE + 1)), ChainError),
    ):
        other.save(file)
        with pytest.raises(kind):
            await move(home, file)
        file.unlink()
        assert Deployment.load(home.deployment) == before
