"""Transactions that are outbid with the same nonce: either may be mined, and one of them is."""

from __future__ import annotations

from piecework_node.journal.records import TxKind, TxState
from tests.support.node.harness import Client
from tests.support.node.settlement import Bank, bank


async def outbid(made: Bank, client: Client) -> tuple[bytes, bytes]:
    """Have a settlement that was stuck and its dearer copy in the pool. Returns their hashes."""
    await made.trade(client)
    made.settler.ask()
    await made.settler.tick()
    made.harness.clock.advance(91)
    await made.settler.tick()
    cheap, dear = made.port.pool
    return cheap, dear


async def test_a_stuck_transaction_is_outbid_with_the_same_nonce_and_one_of_them_wins() -> None:
    made, client = await bank()
    await made.trade(client)
    made.settler.ask()
    await made.settler.tick()
    made.harness.clock.advance(91)
    await made.settler.tick()
    assert {tx.tx.nonce for tx in made.settler.under_way} == {0}
    assert len(made.settler.under_way) == 2
    made.port.mine()
    await made.settler.tick()
    assert not made.settler.under_way
    states = sorted(tx.state.value for tx in made.harness.journal.txs.values())
    assert states == [TxState.FINAL.value, TxState.REPLACED.value]
    assert made.port.paid[client.id] == client.book.cumulative


async def test_the_loser_for_a_nonce_holds_nothing_up_before_the_winner_is_final() -> None:
    made, client = await bank()
    await outbid(made, client)
    made.port.mine(finalize=False)
    await made.settler.tick()
    await made.settler.tick()
    assert len(made.settler.under_way) == 2  # a reorganization may still bring back either
    assert made.settler.idle
    await made.trade(client, seed=4)
    made.settler.ask()
    await made.settler.tick()
    assert {tx.tx.nonce for tx in made.settler.under_way} == {0, 1}
    made.port.mine(finalize=False)
    await made.settler.tick()
    assert made.settler.idle
    assert made.port.paid[client.id] == client.book.cumulative


async def test_the_loser_for_a_nonce_is_not_sent_again_while_the_winner_is_in_a_block() -> None:
    made, client = await bank()
    cheap, dear = await outbid(made, client)
    made.port.drop_from_pool(dear)
    made.port.mine(finalize=False)
    other = Client(made.harness, "other")
    other.open_on_chain()
    await made.trade(other, seed=5)
    made.settler.ask()
    for _ in range(3):
        await made.settler.tick()
    assert made.port.broadcasts[:2] == [cheap, dear]
    assert {tx.tx.nonce for tx in made.settler.under_way} == {0, 1}
    assert {tx.kind for tx in made.settler.under_way} == {TxKind.SETTLE}
    assert not made.harness.metrics.errors


async def test_the_highest_bid_for_a_nonce_is_sent_again_after_a_reorganization() -> None:
    made, client = await bank()
    cheap, dear = await outbid(made, client)
    made.port.drop_from_pool(dear)
    made.port.mine(finalize=False)
    await made.settler.tick()
    assert made.settler.idle
    made.port.reorganize()
    await made.settler.tick()
    assert not made.settler.idle
    assert made.port.broadcasts == [cheap, dear, dear]
    made.port.mine()
    await made.settler.tick()
    assert not made.settler.under_way
    assert made.port.paid[client.id] == client.book.cumulative


async def test_a_stuck_transaction_behind_another_is_not_judged_before_that_one_is_mined() -> None:
    made, client = await bank()
    await made.trade(client)
    made.port.waiting = 7
    made.settler.ask()
    await made.settler.tick()
    other = Client(made.harness, "other")
    other.open_on_chain()
    await made.trade(other, seed=5)
    made.settler.ask()
    await made.settler.tick()
    kinds = [TxKind.SETTLE, TxKind.PUSH, TxKind.SETTLE]
    assert [tx.kind for tx in made.settler.under_way] == kinds
    made.port.waiting = 0  # in the latest block: the first settlement is to bring it
    made.harness.clock.advance(91)
    await made.settler.tick()
    await made.settler.tick()
    # Both settlements are outbid. The push is neither outbid nor cancelled.
    found = sorted(made.settler.under_way, key=lambda tx: tx.tx.nonce)
    assert [tx.tx.nonce for tx in found] == [0, 0, 1, 2, 2]
    assert all(tx.kind is kinds[tx.tx.nonce] for tx in found)
    made.port.waiting = 7
    await made.settler.tick()
    assert [tx.kind for tx in made.settler.under_way].count(TxKind.PUSH) == 2
    made.port.mine()
    await made.settler.tick()
    assert made.port.pushed == 7
    assert made.settler.idle
