"""All that a GPU has to say, in one call: `python -m bench.gpu [--small] [--seconds N] [--out
FILE]`.

With random weights at the dimensions of the released model: memory bandwidth, time of a denoising
step in bfloat16 and FP8 at 1, 4 and 16 sequences beside its floors, tokens a second at 23 steps a
canvas, the fused sampler against the pure one, fused experts against one after the other, products
in tiles against torch's, transcripts alone and in company, and one step against the reference.
Prints one JSON object; on a terminal a table goes to standard error. A section that fails or has no
time left says so, and the rest runs. `--small` does the same on a CPU with small dimensions: it
tests the script and measures nothing.

Needs one GPU with 56 GB free for bfloat16, 32 GB for FP8, and no checkpoint. Exit status 1 if a
section failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.report import environment
from bench.sections import Budget, Figures, Sections

if TYPE_CHECKING:
    from bench.gpu_measures import GpuDevice
    from bench.random_model import RandomDimensions, RandomModel
    from piecework_model.precision import Quantization

RUN_SECONDS: Final = 470.0
"""The whole run: what calls this has 8 minutes, of which Python's start takes some seconds."""
EXPECTED_SECONDS: Final = {"mixture": 20, "steps": 40, "correctness": 20}
"""Of the sections of a model on a GPU, generously: nobody has measured them."""
STEPS_A_CANVAS: Final = 23
"""The median of 2,115 canvases of real prompts (tt-metal#50431)."""
TARGETS: Final = {
    "over_bandwidth_floor at 1 row, at most": 1.3,
    "fp8 tokens a second at 1 row, at least": 1000.0,
    "fp8 tokens a second at 16 rows, at least": 3000.0,
}
"""For an H100."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is."""

    sequences: tuple[int, ...]
    steps: int
    copy_bytes: int
    product: int
    sampler_positions: int
    rounds: int


FULL: Final = Scale((1, 4, 16), STEPS_A_CANVAS, 4 * 2**30, 8192, 256, 10)
SMALL: Final = Scale((1, 3), 3, 2**20, 128, 4, 1)


def run(sections: Sections, dimensions: RandomDimensions, scale: Scale, device: GpuDevice) -> None:
    """Every section, cheap ones first, so that a short budget still gives the most."""
    from bench import gpu_measures as measures
    from bench.random_model import build

    known = sections.results
    sections.run("bandwidth", 5, lambda: measures.bandwidth(device, scale.copy_bytes))
    sections.run("arithmetic", 5, lambda: measures.arithmetic(device, scale.product))
    sections.run(
        "sampler",
        20,
        lambda: measures.fused_sampler(
            device, scale.sampler_positions, dimensions.vocabulary, scale.rounds
        ),
    )
    sections.run(
        "products",
        20,
        lambda: measures.tiled_products(device, _shapes(dimensions, scale), scale.rounds),
    )
    rates = measures.Rates(
        known["bandwidth"].get("read_bytes_second"), known["arithmetic"].get("bf16_flops_second")
    )
    parts: dict[str, Callable[[RandomModel], Figures]] = {
        "mixture": partial(
            measures.mixture, device=device, sequences=scale.sequences, rounds=scale.rounds
        ),
        "steps": partial(
            measures.steps_figures,
            device=device,
            budget=sections.budget,
            rates=rates,
            sequences=scale.sequences,
            steps=scale.steps,
        ),
        "correctness": partial(measures.correctness, device=device),
    }
    packings: dict[str, Quantization] = {"bf16": "none", "fp8": "fp8"}
    for name, quantization in packings.items():
        make = partial(build, dimensions, device.torch, quantization)
        made = _weights(sections, f"{name}_weights", device, make)
        for part, measure_it in parts.items():
            if made:
                sections.run(f"{name}_{part}", EXPECTED_SECONDS[part], partial(measure_it, made[0]))
            else:
                sections.skip(f"{name}_{part}", "there are no weights")
        made.clear()  # nothing else may hold the model: two do not fit a device
        device.release()


def _shapes(dimensions: RandomDimensions, scale: Scale) -> list[tuple[int, int, int]]:
    """List rows, inner size and outputs of typical products.

    They are the queries of the fewest and most sequences, and the logits.
    """
    hidden, canvas = dimensions.hidden, dimensions.canvas
    queries = dimensions.heads * dimensions.head_dim
    few, many = min(scale.sequences) * canvas, max(scale.sequences) * canvas
    return [(few, hidden, queries), (many, hidden, queries), (few, hidden, dimensions.vocabulary)]


def _weights(
    sections: Sections, name: str, device: GpuDevice, make: Callable[[], RandomModel]
) -> list[RandomModel]:
    """The section that makes a model, and the model in a list, which is empty if it failed."""
    made: list[RandomModel] = []

    def section() -> dict[str, Any]:
        device.forget_peak()
        model = make()
        device.wait()
        made.append(model)
        return {
            "codec": model.codec,
            "parameters": model.parameters,
            "weight_bytes": model.weight_bytes,
            "step_bytes": model.step_bytes,
            "peak_bytes": device.peak_bytes(),
        }

    sections.run(name, 30, section)
    return made


def targets(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each target with what was measured, or null."""
    bf16, fp8 = results.get("bf16_steps", {}), results.get("fp8_steps", {})
    measured = [
        fp8.get("rows_1", bf16.get("rows_1", {})).get("over_bandwidth_floor"),
        fp8.get("rows_1", {}).get("tokens_second"),
        fp8.get("rows_16", {}).get("tokens_second"),
    ]
    return {
        name: {"target": target, "measured": value}
        for (name, target), value in zip(TARGETS.items(), measured, strict=True)
    }


def print_table(report: dict[str, Any]) -> None:
    """The report for people, on standard error."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "section",
        "figure",
        "value",
        title=f"{report['device']} at {report['environment']['commit']}",
    )
    for name, result in report["sections"].items():
        for index, (key, value) in enumerate(_flat(result)):
            shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
            table.add_row("" if index else name, key, shown)
    Console(stderr=True).print(table)


def _flat(result: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested figures as one list."""
    rows: list[tuple[str, Any]] = []
    for key, value in result.items():
        rows += (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else [(f"{prefix}{key}", value)]
        )
    return rows


def measure(seconds: float, small: bool) -> dict[str, Any]:
    """The whole report."""
    if small:  # before Triton is imported: a CPU has only its interpreter
        os.environ.setdefault("TRITON_INTERPRET", "1")
    import torch

    from bench import random_model
    from bench.gpu_measures import GpuDevice
    from piecework_model.machine.probe import probe

    if small:
        torch.set_num_threads(1)  # these matrices are too small for two
    sections = Sections(Budget(seconds))
    device = GpuDevice(torch.device("cpu" if small else "cuda"))
    dimensions = random_model.SMALL if small else random_model.RELEASED
    run(sections, dimensions, SMALL if small else FULL, device)
    hardware = probe()
    return {
        "benchmark": "gpu",
        "device": hardware.name,
        "hardware": asdict(hardware),
        "cuda": torch.version.cuda,
        "environment": environment("torch", "transformers", "triton"),
        "dimensions": asdict(dimensions),
        "small": small,
        "sections": sections.results,
        "targets": None if small else targets(sections.results),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="small dimensions on a CPU")
    parser.add_argument("--seconds", type=float, default=RUN_SECONDS, help="of the whole run")
    parser.add_argument("--out", type=Path, help="where the JSON object goes as well")
    options = parser.parse_args(arguments)
    if not options.small:
        import torch

        if not torch.cuda.is_available():
            print("error: no CUDA device; --small runs on a CPU", file=sys.stderr)
            return 2
    report = measure(options.seconds, options.small)
    text = json.dumps(report, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    if sys.stderr.isatty():
        print_table(report)
    print(text)
    return 1 if any(s["status"] == "failed" for s in report["sections"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
