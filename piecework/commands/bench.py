"""`piecework bench`: what this machine does with a model, measured as the worker's offer will state it."""

from __future__ import annotations

from typing import Annotated

import typer

from piecework.commands import _common as common

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None, add_completion=False)


@app.callback()
def bench(
    *,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint folder or pulled model; the bundled one if not given.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    rows: Annotated[list[int] | None, typer.Option(min=1, max=256, help="Jobs at once; repeatable.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=300, help="For each line.")] = 5.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Denoise a fixed prompt again and again, and say how fast. Uses the engine that earns the money."""
    from dataclasses import asdict

    folder = common.checkpoint(model) if model else None
    from model.benchmark import measure
    from model.errors import ModelError
    from model.loading import load
    from model.probe import engine_profile, probe

    if device not in ("auto", "cpu", "cuda") or dtype not in ("auto", "float32", "bfloat16"):
        common.fail("--device is auto, cpu or cuda; --dtype is auto, float32 or bfloat16", 2)
    try:
        loaded = load(folder, device=device, dtype=dtype)  # type: ignore[arg-type]
        hardware = probe()
        lines = [measure(loaded, seconds=seconds, rows=count) for count in rows or [1, 4]]
    except ModelError as error:
        common.fail(str(error))
    if json:
        common.print_json(
            {
                "model": loaded.name,
                "digest": "0x" + loaded.digest.hex(),
                "profile": engine_profile(loaded, hardware),
                "hardware": asdict(hardware),
                "measurements": [asdict(line) for line in lines],
            }
        )
        return
    typer.echo(f"{loaded.name}  {engine_profile(loaded, hardware)}")
    typer.echo(f"{'rows':>5} {'tokens/s':>10} {'steps/s':>10} {'steps/canvas':>13} {'first canvas':>13}")
    for line in lines:
        typer.echo(
            f"{line.rows:>5} {line.tokens_per_second:>10.1f} {line.steps_per_second:>10.1f} "
            f"{line.steps_per_canvas:>13.1f} {line.first_canvas_ms:>10.0f} ms"
        )
