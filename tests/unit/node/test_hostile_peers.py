"""Peers that hold, flood or stall the job port, and honest jobs beside them.

Attackers come from 127.0.0.2, honest clients from 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import grpc
import pytest

from bench.hostile_http2 import (
    CONTINUATION,
    HEADERS,
    WORKER,
    Http2,
    frame,
    message,
    request_headers,
)
from piecework.base.connections import ConnectionLimits, Refused, parse_networks
from piecework_node.job_port.peers import PeerLimits
from piecework_node.job_port.server import StreamTimes
from piecework_protocol.limits import MAX_FRAME_BYTES
from piecework_protocol.relaying import server_name
from tests.support.network.http_attackers import RawConnection
from tests.support.node.harness import OPERATOR
from tests.support.node.served import CONNECTIONS, FRONT, PEERS, Served, serve_worker
from tests.support.node.wire_client import WireClient
from tests.support.waiting import until

ATTACKER = "127.0.0.2"
HASTY = StreamTimes(first_message_s=0.1, write_s=0.1)


async def pay_for_a_job(served: Served, client: WireClient, seed: int = 3) -> None:
    """A job, paid to its end."""
    job = await served.job(client, seed=seed)
    await client.run(job)
    assert job.ended is not None
    assert job.ended.reason is None
    assert job.acknowledged is not None
    assert job.acknowledged >= len(job.receipts) > 0


async def honest_job(served: Served) -> None:
    """A paid job over a connection of its own."""
    client = served.client()
    await pay_for_a_job(served, client)
    await client.close()


async def attack(served: Served, source: str = ATTACKER, **more: int) -> Http2:
    return await Http2.connect("127.0.0.1", served.port, source, **more)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serve_worker() as made:
        yield made


async def test_health_watches_hold_nothing(served: Served) -> None:
    attacker = await attack(served)
    streams = {attacker.open("/grpc.health.v1.Health/Watch") for _ in range(256)}
    await until(lambda: streams <= attacker.ended)
    await honest_job(served)
    await attacker.close()


async def test_offers_are_given_without_reading_the_request(served: Served) -> None:
    attacker = await attack(served)
    streams = [attacker.open(WORKER + "GetOffer") for _ in range(256)]
    for stream in streams:
        await attacker.data(stream, message(4 * 2**20, bytes(100)))
    await until(lambda: set(streams) <= attacker.ended)
    await honest_job(served)
    await attacker.close()


@pytest.mark.parametrize("method", ["CloseChannel", "Run"])
async def test_a_message_that_never_ends_holds_nothing(method: str) -> None:
    async with serve_worker(times=HASTY) as served:
        attacker = await attack(served)
        streams = {attacker.open(WORKER + method) for _ in range(64)}
        for stream in streams:
            await attacker.data(stream, message(1000, bytes(10)))
        await honest_job(served)
        await until(lambda: streams <= attacker.ended)
        await attacker.close()


async def test_unfinished_messages_of_strangers_share_one_bound() -> None:
    small = replace(FRONT, unread_small=64 * 1024, unread_total=2**20, unread_s=1.0)
    async with serve_worker(front=small, times=StreamTimes(first_message_s=2.0)) as served:
        attackers = [await attack(served) for _ in range(8)]
        body = message(MAX_FRAME_BYTES, bytes(MAX_FRAME_BYTES - 1))
        sending = [asyncio.ensure_future(a.data(a.open(WORKER + "Run"), body)) for a in attackers]
        await until(lambda: served.front.unread > 2**20)
        await honest_job(served)
        assert served.front.unread < 2**20 + 8 * 512 * 1024
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, *(a.close() for a in attackers), return_exceptions=True)
        await until(lambda: served.front.unread < 64 * 1024)


async def test_a_connection_that_never_completes_a_message_is_cut_off() -> None:
    small = replace(FRONT, unread_small=64 * 1024, unread_s=0.1)
    async with serve_worker(front=small) as served:
        attacker = await attack(served)
        await attacker.data(attacker.open(WORKER + "Run"), message(2**20, bytes(2**20 - 1)))
        await asyncio.wait_for(attacker.closed.wait(), 10)
        await honest_job(served)
        await attacker.close()


async def test_silent_connections_of_one_address_leave_room_and_are_closed() -> None:
    few = replace(FRONT, connections=ConnectionLimits(24, 16), first_byte_s=0.2)
    async with serve_worker(front=few) as served:
        held = [await RawConnection.open(served.port, ATTACKER) for _ in range(40)]
        await until(lambda: served.refused.count(Refused.ADDRESS) == 24)
        await honest_job(served)
        for connection in held:
            assert await connection.is_closed()
            await connection.close()


async def test_many_addresses_cannot_hold_every_connection() -> None:
    few = replace(FRONT, connections=ConnectionLimits(12, 4))
    async with serve_worker(front=few) as served:
        held = [await RawConnection.open(served.port, f"127.0.0.{2 + n % 3}") for n in range(12)]
        await until(lambda: len(served.front.table) == 12)
        await honest_job(served)
        for connection in held:
            await connection.close()


async def test_hellos_that_trickle_hold_their_own_address_only(served: Served) -> None:
    held = [await RawConnection.open(served.port, ATTACKER) for _ in range(100)]
    for connection in held:
        connection.writer.write(bytes.fromhex("1603010200"))
    await honest_job(served)
    assert served.refused.count(Refused.ADDRESS) == 100 - CONNECTIONS.per_address
    for connection in held:
        await connection.close()


async def test_streams_that_are_reset_at_once_end_the_connection_and_bar_the_address() -> None:
    async with serve_worker(PeerLimits(64, 16, 60, 60)) as served:
        attacker = await attack(served)
        while not attacker.closed.is_set():
            for _ in range(50):
                attacker.reset(attacker.open(WORKER + "Run", end=True))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(attacker.closed.wait(), 0.01)
        async with await RawConnection.open(served.port, ATTACKER) as again:
            assert await again.is_closed()
        assert Refused.BARRED in served.refused
        await honest_job(served)
        await attacker.close()


async def test_headers_that_never_end_are_cut_off(served: Served) -> None:
    attacker = await attack(served)
    attacker.send(frame(HEADERS, 0, 1, request_headers(WORKER + "Run")))
    with pytest.raises(ConnectionError):
        for _ in range(2000):
            attacker.send(frame(CONTINUATION, 0, 1, b"\x00\x01a\x7f\x81\x01" + bytes(8000)))
            await attacker.drain()
            await asyncio.sleep(0)
    await honest_job(served)
    await attacker.close()


async def test_an_address_whose_connections_are_all_broken_is_barred(served: Served) -> None:
    for _ in range(30):
        async with await RawConnection.open(served.port, ATTACKER) as broken:
            broken.writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await broken.rest()
        if Refused.BARRED in served.refused:
            break
    assert Refused.BARRED in served.refused
    await honest_job(served)


async def test_a_client_that_reads_nothing_is_cut_off() -> None:
    async with serve_worker(times=HASTY) as served:
        attacker = await attack(served, window=0)
        for _ in range(8):
            attacker.open(WORKER + "GetOffer", end=True)
        await asyncio.wait_for(attacker.closed.wait(), 10)
        await attacker.close()


async def test_strangers_get_half_of_the_streams_and_payers_the_rest() -> None:
    async with serve_worker(PeerLimits(8, 4, 60_000, 60_000)) as served:
        payer = served.client()
        await pay_for_a_job(served, payer)
        held = [await attack(served, f"127.0.0.{2 + n}") for n in range(4)]
        for attacker in held:
            attacker.open(WORKER + "Run")
        await until(lambda: served.peers.strangers == 4)
        await pay_for_a_job(served, payer, seed=4)
        assert served.peers.strangers == 4
        await payer.close()
        for attacker in held:
            await attacker.close()


async def test_a_stranger_gets_the_place_of_the_address_that_holds_most() -> None:
    async with serve_worker(PeerLimits(8, 4, 60_000, 60_000)) as served:
        attacker = await attack(served)
        for _ in range(4):
            attacker.open(WORKER + "Run")
        await until(lambda: served.peers.strangers == 4)
        client = served.client()
        with pytest.raises(grpc.aio.AioRpcError):
            await client.offer()
        await asyncio.wait_for(attacker.closed.wait(), 10)
        await client.close()
        await honest_job(served)


async def test_a_channel_that_has_paid_is_served_at_an_address_that_used_up_its_rate() -> None:
    async with serve_worker(PeerLimits(64, 16, 60, 6000, standing_s=0.0)) as served:
        payer, stranger = served.client(), served.client()
        jobs = [await served.job(payer, seed=seed) for seed in range(5)]
        await payer.run(jobs[0])
        assert jobs[0].acknowledged
        with pytest.raises(grpc.aio.AioRpcError):
            for _ in range(30):
                await stranger.offer()
        for job in jobs[1:]:
            await payer.run(job)
            assert job.ended is not None
        await payer.close()
        await stranger.close()


async def test_a_submission_that_only_names_a_paying_channel_gets_nothing() -> None:
    async with serve_worker(PeerLimits(64, 16, 60, 6000)) as served:
        payer = served.client()
        jobs = [await served.job(payer, seed=seed) for seed in range(2)]
        await payer.run(jobs[0])
        forged = jobs[1].submission
        forged = replace(forged, signature=jobs[0].submission.signature)
        assert served.harness.worker.has_paid(jobs[1].submission)
        assert not served.harness.worker.has_paid(forged)
        await payer.close()


async def test_clients_behind_a_trusted_relay_do_not_count_as_one() -> None:
    relay = ConnectionLimits(64, 2, trusted=parse_networks(["127.0.0.0/30"]))
    async with serve_worker(
        replace(PEERS, streams_per_address=1), replace(FRONT, connections=relay)
    ) as served:
        clients = [served.client() for _ in range(4)]
        await asyncio.gather(*(client.offer() for client in clients))
        await honest_job(served)
        for client in clients:
            await client.close()


async def test_who_comes_around_the_front_is_not_served(served: Served) -> None:
    credentials = grpc.ssl_channel_credentials(served.certificate)
    options = (("grpc.ssl_target_name_override", server_name(OPERATOR.address)),)
    async with grpc.aio.secure_channel(served.front.target, credentials, options) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary(WORKER + "GetOffer")(b"")  # type: ignore[call-arg]
