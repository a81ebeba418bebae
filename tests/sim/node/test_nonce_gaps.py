"""A gap in the nonces, from a node that has counted wrongly once, has a way out by itself."""

from __future__ import annotations

import pytest

from piecework_node.journal.records import TxKind, TxState
from piecework_node.runtime.faults import Code
from tests.support.node.harness import OUTAGE_S, Client
from tests.support.node.settlement import STUCK_S, Bank, bank


async def with_gap(mined: int) -> tuple[Bank, Client]:
    """A settlement that was signed while the node said that so many are mined. None is."""
    made, client = await bank()
    await made.trade(client)
    made.port.mined_count = mined
    made.settler.ask()
    await made.settler.tick()
    assert [stored.tx.nonce for stored in made.settler.under_way] == [mined]
    made.port.mined_count = None
    made.port.mine()
    await made.settler.tick()
    assert not made.port.paid, "nobody uses the nonces below it"
    return made, client


async def heal(made: Bank) -> None:
    """Rounds until a gap has lasted for long enough, and one that settles."""
    made.harness.clock.advance(STUCK_S)
    await made.settler.tick()
    made.settler.ask()
    await made.settler.tick()
    made.port.mine()
    await made.settler.tick()


@pytest.mark.parametrize("mined", [1, 1000])
@pytest.mark.parametrize("restarts", [False, True])
async def test_what_waits_above_a_gap_is_sent_again_with_a_nonce_out_of_it(
    mined: int, restarts: bool
) -> None:
    made, client = await with_gap(mined)
    if restarts:
        await made.boot()
        assert [stored.tx.nonce for stored in made.settler.under_way] == [mined]
        await made.settler.tick()
    await heal(made)
    assert made.port.paid[client.id] == client.book.cumulative
    assert not made.settler.under_way
    found = {tx.tx.nonce: tx.state for tx in made.harness.journal.txs.values()}
    assert found == {mined: TxState.REPLACED, 0: TxState.FINAL}
    assert any("out of reach" in error.message for error in made.harness.metrics.errors)


async def given_up_in_the_pool() -> tuple[Bank, Client]:
    """A claim with nonce 1 was given up and sent again with nonce 0. Both lie in the pool."""
    made, client = await with_gap(1)
    made.harness.clock.advance(STUCK_S)
    await made.settler.tick()
    made.settler.ask()
    await made.settler.tick()
    assert [stored.tx.nonce for stored in made.settler.under_way] == [0]
    assert sorted(tx.nonce for tx in made.port.pool.values()) == [0, 1]
    return made, client


async def a_claim_of_another(made: Bank) -> Client:
    other = Client(made.harness, "other")
    other.open_on_chain()
    await made.trade(other, seed=5)
    made.settler.ask()
    await made.settler.tick()
    return other


@pytest.mark.parametrize("restarts", [False, True])
async def test_bytes_that_were_given_up_are_known_as_our_own_and_outbid(restarts: bool) -> None:
    made, client = await given_up_in_the_pool()
    if restarts:
        await made.boot()
    await made.settler.check()
    made.harness.clock.advance(OUTAGE_S)
    await made.settler.check()
    assert not made.harness.faults.faults, "no other program has the key"
    other = await a_claim_of_another(made)
    assert not made.harness.faults.faults
    assert [stored.tx.nonce for stored in made.settler.under_way] == [0, 1]
    made.port.mine()
    await made.settler.tick()
    assert not made.settler.under_way
    assert made.port.paid[client.id] == client.book.cumulative
    assert made.port.paid[other.id] == other.book.cumulative
    assert len(made.port.mined) == 2, "what was given up has no gas spent on it"


@pytest.mark.parametrize("restarts", [False, True])
async def test_bytes_that_were_given_up_and_win_are_not_another_programs(restarts: bool) -> None:
    made, client = await given_up_in_the_pool()
    (old,) = [tx for tx in made.port.pool.values() if tx.nonce == 1]
    other = await a_claim_of_another(made)
    (new,) = [s.tx for s in made.settler.under_way if s.tx.nonce == 1]
    made.port.drop_from_pool(new.hash)
    made.port.pool[old.hash] = old
    if restarts:
        await made.boot()
    made.port.mine()
    await made.settler.tick()
    made.settler.ask()
    await made.settler.tick()
    made.port.mine()
    await made.settler.tick()
    assert made.port.paid[client.id] == client.book.cumulative
    assert made.port.paid[other.id] == other.book.cumulative
    assert not any("not in the journal" in error.message for error in made.harness.metrics.errors)
    assert any("given up" in error.message for error in made.harness.metrics.errors)


async def test_a_gap_that_is_short_is_left_to_what_comes_next() -> None:
    made, client = await with_gap(1)
    other = Client(made.harness, "other")
    other.open_on_chain()
    await made.trade(other, seed=5)
    made.settler.ask()
    await made.settler.tick()
    assert sorted(stored.tx.nonce for stored in made.settler.under_way) == [0, 1]
    made.port.mine()
    await made.settler.tick()
    assert not made.settler.under_way
    assert made.port.paid[client.id] == client.book.cumulative
    assert made.port.paid[other.id] == other.book.cumulative


async def test_only_as_many_are_given_up_as_nonces_are_missing() -> None:
    made, _ = await with_gap(2)
    for seed, name in ((5, "second"), (6, "third")):
        client = Client(made.harness, name)
        client.open_on_chain()
        await made.trade(client, seed=seed)
        made.port.mined_count = 3
        made.settler.ask()
        await made.settler.tick()
    made.port.mined_count = None
    assert [stored.tx.nonce for stored in made.settler.under_way] == [2, 3, 4]
    made.settler_waits()
    await made.settler.tick()
    made.harness.clock.advance(STUCK_S)
    await made.settler.tick()
    given = [t.tx.nonce for t in made.harness.journal.txs.values() if t.state is TxState.REPLACED]
    assert sorted(given) == [3, 4], "two are missing, and the lowest stays"
    assert len(made.settler.under_way) >= 1


async def test_a_nonce_of_another_program_is_seen_and_the_effect_is_sent_again() -> None:
    made, client = await bank()
    await made.trade(client)
    made.settler.ask()
    await made.settler.tick()
    (stored,) = made.settler.under_way
    made.port.supersede(stored.tx)
    await made.settler.tick()
    made.settler.ask()
    await made.settler.tick()
    assert [(tx.kind, tx.tx.nonce) for tx in made.settler.under_way] == [(TxKind.SETTLE, 1)]
    assert any("not in the journal" in error.message for error in made.harness.metrics.errors)
    made.port.mine()
    await made.settler.tick()
    assert made.port.paid[client.id] == client.book.cumulative


async def test_what_the_chain_refuses_for_long_is_a_fault_with_a_code() -> None:
    made, client = await bank()
    await made.trade(client)
    made.port.refuses_settlements = True
    made.settler.ask()
    await made.settler.tick()
    assert not made.harness.faults.faults, "once, it may be a channel that was just closed"
    made.harness.clock.advance(OUTAGE_S)
    await made.settler.tick()
    (fault,) = made.harness.faults.faults
    assert fault.code is Code.TRANSACTIONS_REVERT
    assert fault.line.startswith("transactions-revert: settle: the contract refused: NothingNew")
    assert b'piecework_fault{code="transactions-revert"} 1.0' in made.harness.metrics.render()
    assert made.harness.faults.stopping is None, "one payer's channel must not stop the worker"
    made.port.refuses_settlements = False
    await made.settler.tick()
    assert not made.harness.faults.faults
    made.port.mine()
    await made.settler.tick()
    assert made.port.paid[client.id] == client.book.cumulative


async def test_a_nonce_that_the_node_alone_explains_is_used_after_the_outage_only() -> None:
    made, client = await bank()
    await made.trade(client)
    made.port.pending_count = 1000
    await made.settler.check()
    made.settler.ask()
    await made.settler.tick()
    assert not made.settler.under_way and not made.harness.faults.faults
    made.harness.clock.advance(OUTAGE_S)
    await made.settler.tick()
    assert [fault.code for fault in made.harness.faults.faults] == [Code.KEY_SHARED]
    assert made.harness.faults.stopping is not None
    assert [stored.tx.nonce for stored in made.settler.under_way] == [0]
    made.port.pending_count = None
    made.port.mine()
    await made.settler.tick()
    assert not made.harness.faults.faults
    assert made.port.paid[client.id] == client.book.cumulative


async def test_nodes_that_disagreed_about_a_claim_alone_are_asked_again() -> None:
    made, client = await bank()
    await made.trade(client)
    made.port.mine()
    made.port.disagrees = True
    made.settler.ask()
    await made.settler.tick()
    assert {fault.code for fault in made.harness.faults.faults} == {Code.NODES_DISAGREE}
    assert not made.settler.under_way
    made.port.disagrees = False
    await made.settler.tick()
    assert not made.harness.faults.faults, "only a settlement's round can find that out"
    made.port.mine()
    await made.settler.tick()
    assert made.port.paid[client.id] == client.book.cumulative
