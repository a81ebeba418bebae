"""Train the bundled checkpoint from its grammar and evaluate it: `python -m
piecework_model.training`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from transformers import DiffusionGemmaForBlockDiffusion

from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_model.training import architecture, loop, vocabulary, writer

_REPORT_EVERY_STEPS = 50


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m piecework_model.training", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=bundled_checkpoint_path(), help="checkpoint folder to write"
    )
    parser.add_argument("--steps", type=int, default=loop.TrainingSettings().steps)
    parser.add_argument("--seed", type=int, default=loop.TrainingSettings().seed)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--evaluate-only", action="store_true", help="evaluate what is in the folder already"
    )
    return parser.parse_args()


class _Progress:
    """Print mean losses every `_REPORT_EVERY_STEPS` steps."""

    def __init__(self, total_steps: int) -> None:
        self._total = total_steps
        self._started = time.monotonic()
        self._losses: list[tuple[float, float]] = []

    def __call__(self, step: int, denoising: float, encoder: float) -> None:
        self._losses.append((denoising, encoder))
        if len(self._losses) == _REPORT_EVERY_STEPS or step + 1 == self._total:
            means = [sum(values) / len(self._losses) for values in zip(*self._losses, strict=True)]
            seconds = time.monotonic() - self._started
            sys.stdout.write(
                f"step {step + 1}/{self._total}  denoising {means[0]:.4f}  encoder {means[1]:.4f}"
            )
            sys.stdout.write(f"  {seconds:.0f} s\n")
            sys.stdout.flush()
            self._losses.clear()


def _train(settings: loop.TrainingSettings, output: Path) -> None:
    torch.manual_seed(settings.seed)
    tokenizer = vocabulary.build_tokenizer()
    model = DiffusionGemmaForBlockDiffusion(architecture.build_config(tokenizer.get_vocab_size()))
    model.set_experts_implementation("eager")
    loop.train(model, tokenizer, settings, _Progress(settings.steps))
    writer.write_checkpoint(model, output)


def main() -> None:
    """Train unless told not to, then evaluate."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    settings = loop.TrainingSettings(seed=arguments.seed, steps=arguments.steps)
    if not arguments.evaluate_only:
        _train(settings, arguments.output)
    from piecework_model.training import (
        evaluation,
    )  # after training: the engine is not needed before

    sys.stdout.write(evaluation.report(arguments.output, settings))


if __name__ == "__main__":
    main()
