"""All that a GPU has to say, in one call: `python -m bench.gpu [--small] [--budget SECONDS] [--out
FILE]`.

With random weights at the dimensions of the released model, made on the device. The order is that
of what the figures are worth:

1. memory bandwidth and arithmetic, for the floors
2. attention at 8 K and 32 K, which fails if a call needs torch's math path
3. of bfloat16, then int4, then fp8:
   - steps at 1, 4 and 16 sequences beside their floors, tokens a second at 23 steps a canvas, and
     transcripts alone and in company
   - prompts of 8 K and 32 K
   - experts fused beside one after the other
   - one step against the reference
4. int4 experts in host memory, and loading from files
5. the fused sampler against the pure one, and products in tiles against torch's

Times are medians with their spread. Peak memory is beside what was planned. A section that fails or
has no time left says so, and the rest runs. `--out` is written whenever a section ends. On a
terminal a table goes to standard error, and one JSON object to standard output.

`--small` does the same on a CPU with small dimensions: it tests the script and measures nothing.

Needs one GPU with 56 GB free for bfloat16, 32 GB for fp8, 24 GB for int4, and no checkpoint. Exit
status 1 if a section failed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.report import environment
from bench.sections import Budget, Figures, Sections

if TYPE_CHECKING:
    from bench.gpu_measures import GpuDevice, Rates
    from bench.random_model import RandomDimensions, RandomModel
    from piecework_model.precision import Quantization

RUN_SECONDS: Final = 470.0
"""The whole run: what calls this has 8 minutes, of which Python's start takes some seconds."""
EXPECTED_SECONDS: Final = {
    "weights": 30,
    "steps": 40,
    "prompts": 40,
    "mixture": 20,
    "correctness": 20,
}
"""Of the sections of a model on a GPU, generously: nobody has measured them."""
STEPS_A_CANVAS: Final = 23
"""The median of 2,115 canvases of real prompts (tt-metal#50431)."""
NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True, slots=True)
class GpuTarget:
    """What is wanted of an H100, and what is expected.

    estimate: by counting launches, bytes and operations of today's kernels. It is not measured.
    """

    name: str
    target: float
    estimate: float


TARGETS: Final = (
    GpuTarget("over_bandwidth_floor at 1 row, at most", 1.3, 2.7),
    GpuTarget("fp8 tokens a second at 1 row, at least", 1000.0, 320.0),
    GpuTarget("fp8 tokens a second at 16 rows, at least", 3000.0, 900.0),
)


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is."""

    sequences: tuple[int, ...]
    steps: int
    copy_bytes: int
    product: int
    sampler_positions: int
    rounds: int
    contexts: tuple[int, ...]
    resident_shares: tuple[float, ...]


FULL: Final = Scale(
    sequences=(1, 4, 16),
    steps=STEPS_A_CANVAS,
    copy_bytes=4 * 2**30,
    product=8192,
    sampler_positions=256,
    rounds=10,
    contexts=(8192, 32_768),
    resident_shares=(1.0, 0.4),
)
SMALL: Final = Scale(
    sequences=(1, 3),
    steps=3,
    copy_bytes=2**20,
    product=128,
    sampler_positions=4,
    rounds=2,
    contexts=(128, 512),
    resident_shares=(1.0, 0.4),
)


@dataclass(frozen=True, slots=True)
class Bench:
    """What all sections share."""

    sections: Sections
    dimensions: RandomDimensions
    scale: Scale
    device: GpuDevice


def run(bench: Bench) -> None:
    """Every section, in the order of worth, so that a short budget still gives the most."""
    from bench import gpu_contexts, gpu_weights
    from bench import gpu_measures as measures

    sections, scale, device = bench.sections, bench.scale, bench.device
    dimensions, known = bench.dimensions, bench.sections.results
    sections.run("bandwidth", 5, lambda: measures.bandwidth(device, scale.copy_bytes))
    sections.run("arithmetic", 5, lambda: measures.arithmetic(device, scale.product))
    sections.run(
        "attention",
        10,
        lambda: gpu_contexts.attention(device, dimensions, scale.contexts, scale.rounds),
    )
    rates = measures.Rates(
        known["bandwidth"].get("read_bytes_second"), known["arithmetic"].get("bf16_flops_second")
    )
    for name, quantization in PACKINGS.items():
        _model(bench, name, quantization, _parts(bench, rates, quantization))
    sections.run(
        "offload",
        60,
        lambda: gpu_weights.offload(
            dimensions, device, shares=scale.resident_shares, steps=scale.steps
        ),
    )
    sections.run("loading", 90, lambda: gpu_weights.loading(dimensions, device))
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


PACKINGS: Final[dict[str, Quantization]] = {"bf16": "none", "int4": "int4", "fp8": "fp8"}
Part = Callable[["RandomModel"], Figures]


def _parts(bench: Bench, rates: Rates, quantization: Quantization) -> dict[str, Part]:
    """What is measured of one model, by name, in the order of worth."""
    from bench import gpu_contexts
    from bench import gpu_measures as measures

    scale, device = bench.scale, bench.device

    return {
        "steps": partial(
            measures.steps_figures,
            device=device,
            budget=bench.sections.budget,
            rates=rates,
            sequences=scale.sequences,
            steps=scale.steps,
        ),
        "prompts": partial(
            gpu_contexts.prompts,
            device=device,
            sizes=bench.dimensions,
            quantization=quantization,
            contexts=scale.contexts,
            steps=scale.steps,
        ),
        "mixture": partial(
            measures.mixture, device=device, sequences=scale.sequences, rounds=scale.rounds
        ),
        "correctness": partial(measures.correctness, device=device),
    }


def _model(bench: Bench, name: str, quantization: Quantization, parts: dict[str, Part]) -> None:
    """Make a model, measure it, and let it go."""
    from bench.random_model import build

    sections, device = bench.sections, bench.device

    make = partial(build, bench.dimensions, device.torch, quantization)
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

    sections.run(name, EXPECTED_SECONDS["weights"], section)
    return made


def targets(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each target with an estimate, and what was measured."""
    bf16, fp8 = results.get("bf16_steps", {}), results.get("fp8_steps", {})
    measured = [
        fp8.get("rows_1", bf16.get("rows_1", {})).get("over_bandwidth_floor"),
        fp8.get("rows_1", {}).get("tokens_second"),
        fp8.get("rows_16", {}).get("tokens_second"),
    ]
    return {
        wanted.name: {
            "target": wanted.target,
            "estimate": wanted.estimate,
            "measured": NOT_MEASURED if value is None else value,
        }
        for wanted, value in zip(TARGETS, measured, strict=True)
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
    for name, row in (report["targets"] or {}).items():
        shown = ", ".join(f"{key} {value}" for key, value in row.items())
        table.add_row("target", name, shown)
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


def measure(seconds: float, small: bool, out: Path | None = None) -> dict[str, Any]:
    """The whole report. `out` has what there is so far whenever a section ends."""
    if small:  # before Triton is imported: a CPU has only its interpreter
        os.environ.setdefault("TRITON_INTERPRET", "1")
    import torch

    from bench import random_model
    from bench.gpu_measures import GpuDevice
    from piecework_model.machine.probe import probe

    if small:
        torch.set_num_threads(1)  # these matrices are too small for two
    device = GpuDevice(torch.device("cpu" if small else "cuda"))
    dimensions = random_model.SMALL if small else random_model.RELEASED
    hardware = probe()
    head = {
        "benchmark": "gpu",
        "device": hardware.name,
        "hardware": asdict(hardware),
        "cuda": torch.version.cuda,
        "environment": environment("torch", "transformers", "triton"),
        "dimensions": asdict(dimensions),
        "small": small,
    }

    def report(results: Mapping[str, Any]) -> dict[str, Any]:
        known = dict(results)
        return {**head, "sections": known, "targets": None if small else targets(known)}

    def note(results: Mapping[str, Any]) -> None:
        name = list(results)[-1]
        print(f"{name}: {results[name]['status']}", file=sys.stderr, flush=True)
        if out is not None:
            out.write_text(json.dumps(report(results), indent=1) + "\n", encoding="utf-8")

    sections = Sections(Budget(seconds), note)
    run(Bench(sections, dimensions, SMALL if small else FULL, device))
    return report(sections.results)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="small dimensions on a CPU")
    parser.add_argument(
        "--budget", type=float, default=RUN_SECONDS, help="seconds of the whole run"
    )
    parser.add_argument("--out", type=Path, help="where the JSON object goes as well")
    options = parser.parse_args(arguments)
    if not options.small:
        import torch

        if not torch.cuda.is_available():
            print("error: no CUDA device; --small runs on a CPU", file=sys.stderr)
            return 2
    report = measure(options.budget, options.small, options.out)
    if sys.stderr.isatty():
        print_table(report)
    print(json.dumps(report, indent=1))
    return 1 if any(s["status"] == "failed" for s in report["sections"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
