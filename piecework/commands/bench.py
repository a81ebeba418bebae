"""`piecework bench`: what this machine does with a model, measured as the worker's offer will state
it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from piecework.commands import _common as common

if TYPE_CHECKING:
    from piecework_model.checkpoint.loading import DeviceChoice
    from piecework_model.machine.benchmark import Measurement
    from piecework_model.machine.planning import PrecisionChoice

app = common.single()


EarningHome = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="A worker's home. Its offers show these figures from its next start on, and a line "
        "says what they would earn.",
    ),
]


@app.callback()
def bench(
    *,
    model: Annotated[
        str | None,
        typer.Option(help="Checkpoint folder or pulled model. Default: the bundled one."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str,
        typer.Option(help="auto (the most faithful that fits), float32, bfloat16, fp8 or int4."),
    ] = "auto",
    rows: Annotated[
        list[int] | None,
        typer.Option(min=1, max=256, help="Jobs at once; repeatable. Default: 1, 4 and 8."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=300, help="Seconds of measuring for each line.")
    ] = 5.0,
    home: EarningHome = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure this machine as the worker would.

    It denoises a fixed prompt repeatedly, with the engine that also serves jobs.
    """
    folder = common.checkpoint(model) if model else None
    on = common.one_of("--device", device, ("auto", "cpu", "cuda"))
    wanted = common.one_of("--precision", precision, ("auto", "float32", "bfloat16", "fp8", "int4"))
    report = measure(
        folder,
        cast("DeviceChoice", on),
        cast("PrecisionChoice", wanted),
        rows or [1, 4, 8],
        seconds,
    )
    if home is not None:
        save(home, report)
    if json:
        common.print_json(report)
        return
    common.say(f"{report['model']}  {report['profile']}")
    common.say(report["precision"])
    common.say(
        f"{'rows':>5} {'tokens/s':>10} {'steps/s':>10} {'steps/canvas':>13} {'first canvas':>16}"
    )
    for line in report["measurements"]:
        common.say(
            f"{line['rows']:>5} {line['tokens_per_second']:>10.1f} "
            f"{line['steps_per_second']:>10.1f} "
            f"{line['steps_per_canvas']:>13.1f} {line['first_canvas_ms']:>13.0f} ms"
        )
    if home is not None:
        from piecework.commands._worker import estimate as estimates

        estimator = estimates.Estimator(home, estimates.EstimateWishes())
        estimates.show(estimates.here(estimator), estimator, as_json=False)


def measure(
    folder: Path | None,
    device: DeviceChoice,
    precision: PrecisionChoice,
    counts: list[int],
    seconds: float,
) -> dict[str, Any]:
    """Load the model as a worker would and measure each number of jobs at once."""
    from piecework_model.engine.batched import BatchedExecutor
    from piecework_model.errors import ModelError
    from piecework_model.machine.benchmark import measure as run
    from piecework_model.machine.planning import load_planned
    from piecework_model.machine.probe import engine_profile, probe, use_threads

    try:
        planned = load_planned(folder, device=device, precision=precision, sequences=max(counts))
        loaded, hardware = planned.loaded, probe()
        use_threads(loaded, 0)
        executor = BatchedExecutor(loaded.model, loaded.limits)
        executor.record(max(counts))
        lines = [run(loaded, executor, seconds=seconds, sequences=count) for count in counts]
    except ModelError as error:
        common.fail(str(error))
    return {
        "model": loaded.name,
        "digest": "0x" + loaded.digest.hex(),
        "profile": engine_profile(loaded, hardware, executor.kernels),
        "precision": planned.choice.reason,
        "hardware": asdict(hardware),
        "measurements": [_line(line) for line in lines],
    }


def _line(measured: Measurement) -> dict[str, Any]:
    """A line of the report. `rows`, the number of jobs at once, is the key that offers have."""
    figures = asdict(measured)
    return {"rows": figures.pop("sequences"), **figures}


def save(home: Path, report: dict[str, Any]) -> None:
    """Leave the figures where `worker start` finds them; one clear line when there is no such
    home."""
    from piecework_node.engine.benchmark_table import write_speeds
    from piecework_node.home import Home

    place = Home(home)
    if not place.config.is_file():
        common.fail(f"{home} is not a worker's home. Run `piecework worker init` first.")
    write_speeds(place, report)
