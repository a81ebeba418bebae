"""Automatic prices with a real daemon, a real index, a real registry and real commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piecework.base.http import HttpLimits, HttpReader, HttpStatus
from piecework.chain.dev.embedded import EmbeddedChain
from piecework_node.daemon.admin import ask_daemon
from piecework_protocol.index_pages import parse_page
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.types import Amount, keccak256
from piecework_protocol.wire import SignedOffer, encode_offer
from tests.integration.market.test_can_earn import an_index
from tests.integration.market.test_changes import worker_command
from tests.support.chain.chains import TestMarket, deployed
from tests.support.system.worker_process import POLL_STATUS_S, WorkerProcess
from tests.support.waiting import until

pytestmark = pytest.mark.process

OTHERS = [bytes(keccak256(b"another operator %d" % number)) for number in range(3)]
STRANGERS = [bytes(keccak256(b"nobody's stake %d" % number)) for number in range(9)]
LIMITS = HttpLimits(total_s=10, connect_s=5, max_bytes=2**20)
OWN_OUTPUT = 200_000
"""The default of price_per_million_output_tokens, in base units."""


async def offers(url: str) -> list[SignedOffer]:
    async with HttpReader(LIMITS) as http:
        return parse_page(await http.get(f"{url}/v1/offers"), 100)[0]


def ask(mine: SignedOffer, secret: bytes, market: TestMarket) -> bytes:
    """An offer of another operator for the same model at a tenth of the price."""
    operator, model = LocalSigner(secret), mine.offer.models[0]
    cheap = model.replace(
        price_per_million_output_tokens=Amount(model.price_per_million_output_tokens // 10),
        price_per_thousand_steps=Amount(model.price_per_thousand_steps // 10),
    )
    offer = mine.offer.replace(operator=operator.address, models=(cheap,))
    signed = SignedOffer(offer, sign(market.deployment.domain, offer, operator))
    return encode_offer(signed)


async def prices(worker: WorkerProcess) -> dict[str, Any]:
    return dict((await ask_daemon(worker.home.root, "GET", "/status"))["prices"])


async def test_a_worker_follows_registered_operators_and_goes_on_after_a_restart(
    tmp_path: Path,
) -> None:
    async with EmbeddedChain() as chain, deployed(chain) as market:
        async with an_index(tmp_path, market) as url:
            worker = await WorkerProcess.register(
                tmp_path / "worker", market.deployment, pace_s=0.01, indexes=(url,)
            )
            await worker.start()
            try:
                await it_follows_nobody_without_a_stake(worker, market, url)
                await it_follows_those_with_a_stake(tmp_path, worker, market, url)
            finally:
                assert await worker.drain() == 0
        await without_an_index_it_keeps_what_it_asked(worker)


async def it_follows_nobody_without_a_stake(
    worker: WorkerProcess, market: TestMarket, url: str
) -> None:
    """An index that lists them is one that lies: this one refuses them."""
    (mine,) = await offers(url)
    assert await prices(worker) == {"automatic": False}
    async with HttpReader(LIMITS) as http:
        for secret in STRANGERS:
            with pytest.raises(HttpStatus, match="403"):
                await http.post(f"{url}/v1/offers", ask(mine, secret, market), headers={})
    said = await worker_command(worker, "set", "automatic_prices", "true")
    assert said.out.splitlines()[0] == "in force now: automatic_prices", said.err

    async def looked() -> bool:
        return bool((await prices(worker)).get("outcome") == "too-few")

    await until(looked, within_s=30, poll_s=POLL_STATUS_S)
    assert (await prices(worker))["asked"] == (await prices(worker))["most"]


async def it_follows_those_with_a_stake(
    folder: Path, worker: WorkerProcess, market: TestMarket, url: str
) -> None:
    (mine,) = await offers(url)
    async with HttpReader(LIMITS) as http:
        for number, secret in enumerate(OTHERS):
            await WorkerProcess.register(
                folder / f"other {number}", market.deployment, pace_s=0.01, secret=secret
            )
            await http.post(f"{url}/v1/offers", ask(mine, secret, market), headers={})
    # It looks at once when it is turned on.
    for value in ("false", "true"):
        assert (await worker_command(worker, "set", "automatic_prices", value)).code == 0

    async def moved() -> bool:
        return bool((await prices(worker)).get("outcome") == "moved")

    await until(moved, within_s=30, poll_s=POLL_STATUS_S)
    told = await prices(worker)
    assert told["operators"] == 3 and told["market"] < told["least"] < told["most"]
    assert told["asked"] == told["most"] - told["most"] * 5 // 100
    (forecast,) = (await worker_command(worker, "estimate", "--json")).json()["estimates"]
    assert forecast["prices"]["output"] == OWN_OUTPUT // 10
    assert "3 other workers" in forecast["prices"]["source"]

    async def offered() -> bool:
        now = {one.offer.operator: one.offer for one in await offers(url)}
        output = now[mine.offer.operator].models[0].price_per_million_output_tokens
        return 0.95 * OWN_OUTPUT <= output < OWN_OUTPUT

    await until(offered, within_s=30, poll_s=POLL_STATUS_S)
    said = await worker_command(worker, "status")
    assert "the median of 3 other operators" in said.out
    assert "moved one step towards the market" in said.out and "next look" in said.out


async def without_an_index_it_keeps_what_it_asked(worker: WorkerProcess) -> None:
    await worker.start()
    try:

        async def looked() -> bool:
            return bool((await prices(worker)).get("outcome") == "unknown")

        await until(looked, within_s=30, poll_s=POLL_STATUS_S)
        told = await prices(worker)
        assert told["asked"] == told["most"] - told["most"] * 5 // 100
        assert told["market"] is None
        estimated = (await worker_command(worker, "estimate", "--json")).json()
        assert estimated["asked"]["asked"] == told["asked"]
    finally:
        assert await worker.drain() == 0
