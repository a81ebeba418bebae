"""`piecework models plan`: the memory that a model needs, before it is downloaded or loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piecework.commands import _common as common

if TYPE_CHECKING:
    from piecework_model.checkpoint.dimensions import Blueprint
    from piecework_model.checkpoint.memory import Device, Need

DEFAULT_CONTEXTS = (8192, 32_768)
DEFAULT_ROWS = (1, 4, 16)
GIB = 2**30


def plan(
    *,
    model: Annotated[
        str,
        typer.Argument(
            help="Checkpoint folder or pulled model. Default: the released one, as published."
        ),
    ] = "",
    context: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Tokens of a job, prompt and answer; repeatable."),
    ] = None,
    rows: Annotated[
        list[int] | None, typer.Option(min=1, max=256, help="Jobs at once; repeatable.")
    ] = None,
    card: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1024, help="GiB of a GPU to plan for; repeatable."),
    ] = None,
    host: Annotated[
        int, typer.Option(min=1, max=65_536, help="GiB of memory beside such a GPU.")
    ] = 64,
    home: Annotated[
        Path | None, typer.Option(help="A worker's home. Also say what such cards would earn.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show which precision fits which card.

    The table lists memory by precision, context and jobs at once.
    """
    from piecework_model.checkpoint import memory
    from piecework_model.checkpoint.dimensions import RELEASED_NAME, read, released_blueprint
    from piecework_model.errors import ModelError

    folder = common.checkpoint(model) if model else None
    try:
        blueprint = read(folder) if folder else released_blueprint()
    except ModelError as error:
        common.fail(str(error))
    contexts = sorted({min(c, blueprint.of.max_context) for c in context or DEFAULT_CONTEXTS})
    counts = sorted(set(rows or DEFAULT_ROWS))
    devices = [memory.Device("cuda", f"a GPU of {g} GiB", g * GIB, host * GIB) for g in card or ()]
    devices = devices or [_this_machine()]
    table = memory.table(blueprint, devices[0].kind, counts, contexts)
    choices = [_choice(blueprint, device, counts[0], contexts[0]) for device in devices]
    name = folder.name if folder else RELEASED_NAME
    if json:
        common.print_json(
            {"model": name, "table": [_row(need) for need in table], "devices": choices}
        )
        return
    common.say(f"{name} on {'a GPU' if devices[0].kind == 'cuda' else 'a CPU'}")
    _say_table(table)
    for choice in choices:
        common.say(f"{choice['device']}: {choice['reason']}")
    if home is not None:
        _say_earnings(home, frozenset(card or ()))


def _say_table(table: Sequence[Need]) -> None:
    from piecework_model.checkpoint.memory import size_text

    common.say(
        f"{'precision':10}{'context':>9}{'jobs':>6}{'weights':>12}{'KV':>12}{'step':>12}{'all':>12}"
    )
    for need in table:
        sizes = (need.weights_bytes, need.kv_bytes, need.work_bytes, need.device_bytes)
        figures = "".join(f"{size_text(size):>12}" for size in sizes)
        common.say(f"{need.precision:10}{need.context:>9,}{need.sequences:>6}{figures}")


def _say_earnings(home: Path, sizes: frozenset[int]) -> None:
    """What cards of these sizes would earn, with the model of a home. Without sizes: all."""
    from piecework.commands._worker import estimate as estimates
    from piecework_node.console.cards import CARDS

    estimator = estimates.Estimator(home, estimates.EstimateWishes())
    cards = [one for one in CARDS if not sizes or one.gigabytes.value in sizes]
    estimates.show(estimates.by_cards(cards, estimator), estimator, as_json=False)


def _this_machine() -> Device:
    from piecework_model.machine.planning import device_of
    from piecework_model.machine.probe import probe

    hardware = probe()
    return device_of(hardware, hardware.device)


def _choice(blueprint: Blueprint, device: Device, sequences: int, context: int) -> dict[str, Any]:
    """What a device would run, or why it runs nothing."""
    from piecework_model.checkpoint.memory import choose
    from piecework_model.errors import DeviceError
    from piecework_protocol.views import members

    try:
        choice = choose(blueprint, device, sequences=sequences, context=context)
    except DeviceError as error:
        return {"device": device.name, "precision": None, "offloaded": False, "reason": str(error)}
    need = choice.need
    return {
        "device": device.name,
        **members(need, "precision", "offloaded"),
        "reason": choice.reason,
    }


def _row(need: Need) -> dict[str, Any]:
    from piecework_protocol.views import members

    return {
        **members(need, "precision", "context"),
        "rows": need.sequences,
        **members(need, "weights_bytes", "kv_bytes", "work_bytes", "device_bytes"),
    }
