"""Train the bundled checkpoint from its grammar and evaluate it: `python -m
piecework_model.training`.

A run writes its state now and then, and goes on from it with --resume. The weights that come out
are the same as of a run that was never stopped, on a CPU of the same kind.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_model.training import architecture, loop, vocabulary, writer
from piecework_model.training.network import fastest_products

_REPORT_EVERY_STEPS = 20
_SAVE_EVERY_S = 180.0
_STATE_FILE = "training-state.safetensors"


def _arguments() -> argparse.Namespace:
    defaults = loop.TrainingSettings()
    parser = argparse.ArgumentParser(prog="python -m piecework_model.training", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=bundled_checkpoint_path(), help="checkpoint folder to write"
    )
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--begin-with",
        type=Path,
        metavar="FOLDER",
        help="begin with the weights of this checkpoint, and without the first steps",
    )
    parser.add_argument("--threads", type=int, default=2, help="they change the time alone")
    parser.add_argument(
        "--state", type=Path, default=Path(_STATE_FILE), help="where the run keeps its state"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the state")
    parser.add_argument(
        "--write-only", action="store_true", help="write the checkpoint of the state as it is"
    )
    parser.add_argument("--card", type=Path, help="model card to put the evaluation into")
    parser.add_argument(
        "--evaluate-only", action="store_true", help="evaluate what is in the folder already"
    )
    return parser.parse_args()


class _Progress:
    """Print mean losses every `_REPORT_EVERY_STEPS` steps, and save the run now and then."""

    def __init__(self, trainer: loop.Trainer, state: Path, clock: Callable[[], float]) -> None:
        self._trainer, self._state, self._clock = trainer, state, clock
        self._started = self._saved = clock()
        self._losses: list[tuple[float | None, ...]] = []

    def __call__(self, step: int, losses: loop.Losses) -> None:
        self._losses.append(dataclasses.astuple(losses))
        total, now = self._trainer.settings.steps, self._clock()
        if len(self._losses) == _REPORT_EVERY_STEPS or step + 1 == total:
            names = [field.name for field in dataclasses.fields(losses)]
            columns = [
                [v for v in each if v is not None] for each in zip(*self._losses, strict=True)
            ]
            means = zip(names, columns, strict=True)
            shown = "  ".join(f"{n} {sum(each) / len(each):.4f}" for n, each in means if each)
            sys.stdout.write(f"step {step + 1}/{total}  {shown}  {now - self._started:.0f} s\n")
            sys.stdout.flush()
            self._losses.clear()
        if now - self._saved > _SAVE_EVERY_S or step + 1 == total:
            self._trainer.save(self._state)
            self._saved = now


def _trainer(arguments: argparse.Namespace) -> loop.Trainer:
    begin: Path | None = arguments.begin_with
    settings = loop.TrainingSettings(
        seed=arguments.seed, steps=arguments.steps, reads_first=begin is None
    )
    torch.manual_seed(settings.seed)
    size = vocabulary.build_tokenizer().get_vocab_size()
    products = fastest_products()
    sys.stdout.write(f"matrix products in {products}\n")
    model = architecture.build_model(size) if begin is None else architecture.load_model(begin)
    trainer = loop.Trainer(model, settings, arguments.threads, products)
    if arguments.resume or arguments.write_only:
        trainer.load(arguments.state)
    return trainer


def main() -> None:
    """Train unless told not to, then evaluate."""
    arguments = _arguments()
    torch.set_num_threads(1)  # a batch is one thread's work
    if not arguments.evaluate_only:
        trainer = _trainer(arguments)
        if not arguments.write_only:
            trainer.run(_Progress(trainer, arguments.state, time.monotonic))
        writer.write_checkpoint(trainer.model, arguments.output)
    from piecework_model.training import (
        evaluation,
    )  # after training: the engine is not needed before

    tables = evaluation.report(arguments.output)
    sys.stdout.write(tables)
    if arguments.card is not None:
        card = evaluation.put_into_card(arguments.card.read_text(encoding="utf-8"), tables)
        arguments.card.write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
