"""Moments of a worker, for what draws them."""

from __future__ import annotations

from piecework_node.console.model import (
    Alert,
    ConsoleRates,
    Earned,
    LiveCanvas,
    OpenBalance,
    ShownCard,
    ShownMoney,
    ShownPrices,
    ShownTest,
    Snapshot,
)
from piecework_node.owner.readings import GpuProcess, GpuReading

AT = 1_800_000_000
CARD = GpuReading(
    name="NVIDIA GeForce RTX 4090",
    temperature_c=71,
    power_w=312.4,
    energy_j=1e6,
    utilization=98,
    memory_used=20 * 2**30,
    memory_total=24 * 2**30,
    throttled=("power limit",),
    processes=(GpuProcess(77, "Xorg", 400 * 2**20, 3),),
)

WHY = (
    ("asked", "0.290195 USDC per million output tokens with their steps"),
    ("why", "moved one step towards the market"),
    ("market", "0.21 USDC, the median of 5 other operators"),
)


def a_card(name: str = "0", *, gpu: GpuReading | None = CARD) -> ShownCard:
    """A busy card."""
    return ShownCard(
        name=name,
        state="ready",
        why="",
        model="google/diffusiongemma-26b",
        precision="int4",
        slots=8,
        active=3,
        gpu=gpu,
        missing="" if gpu else "NVML does not show card 0: Driver Not Loaded",
    )


def a_snapshot(gpu: GpuReading | None = CARD) -> Snapshot:
    """A busy worker. Without a card nothing is known of power."""
    joules = 900_000.0 if gpu else None
    return Snapshot(
        test=ShownTest(
            state="running",
            why="",
            card="0",
            prompt="Tell me about <b>a lamp</b>.",
            text="Once there was a lamp. It <i>lit</i> the whole forest. " * 12,
            canvas=1,
            step=9,
            max_steps=48,
            tokens=256,
            seconds=1.7,
        ),
        at=AT,
        state="ready",
        why=(),
        operator="0x" + "ab" * 20,
        model="google/diffusiongemma-26b <script>alert(1)</script>",
        device="cuda",
        precision="int4: 18.4 of 24.0 GiB, the highest precision that fits in memory",
        slots=8,
        queue=16,
        active=3,
        streams=3,
        canvases=(
            LiveCanvas("0x0123456789…", "0xabcdef01…", 4, 17, 48, 1843, 201, 0),
            LiveCanvas("0x1123456789…", "0xabcdef01…", 0, 48, 48, 12, 256, 0),
            LiveCanvas("0x2123456789…", "0xffcdef01…", 0, 0, 48, 120_000, 0, 1),
        ),
        jobs={"delivered": 1204, "paid": 1201, "cancelled": 12},
        refusals={"BUSY": 40, "WITHDRAWAL_DELAY_TOO_SHORT": 2},
        hours=tuple(
            Earned(f"11-29 {hour:02}:00", 100, 400, 123_456_789, 4_000, 71_000, joules)
            for hour in range(12)
        ),
        days=(Earned("2026-11-29", 1204, 4816, 1_481_481_468, 48_000, 852_000, joules),),
        models=(
            Earned("google/diffusiongemma-26b", 1204, 4816, 1_481_481_468, 48_000, 852_000, joules),
        ),
        clients=(
            Earned("0xabcdef01…", 1000, 4000, 1_300_000_000, 39_867, 707_642, joules),
            Earned("others", 204, 816, 1, 8_132, 144_359, None),
        ),
        balance=OpenBalance(5_000_000, 0, 12_345, 8_000_000, "0.0123 coin", 340),
        rates=ConsoleRates(812.4, 96.1, 384.0 if gpu else None),
        cards=(a_card(gpu=gpu),),
        head_age_s=3.2,
        indexes={"index.example": True, "other.example": False},
        relays={"relay.example:7443": "joined", "far.example:7443": "it does not answer"},
        alerts=(
            Alert(AT - 900, "gas-low", "the worker cannot pay for settlements. Send some."),
            Alert(AT - 60, "gas-low", "the worker cannot pay for settlements. Send some.", True),
        ),
        money=ShownMoney("USDC", 6, 1.0, 0.3) if gpu else ShownMoney("USDC", 6),
        prices=ShownPrices(50_000, 190_001, 951, WHY, AT + 1800)
        if gpu
        else ShownPrices(50_000, 200_000, 1_000),
    )
