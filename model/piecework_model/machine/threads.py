"""How many threads denoise on a CPU."""

from __future__ import annotations

from typing import Final

import torch

from piecework_model.checkpoint.loading import LoadedModel

SMALL_MODEL_PARAMETERS: Final = 50_000_000
"""Below this the matrices of one layer take microseconds. OpenMP's threads then wait for each other
longer than they work, and on a machine whose cores are busy ten times as long (measured: the
bundled checkpoint is ready after 14 s with one thread and after 118 s with two, on two busy cores).
"""


def use_threads(loaded: LoadedModel, asked: int) -> int:
    """Sets and returns the number of threads: `asked`, or for 0 what fits the model. Call it in the
    thread that runs the engine.
    """
    chosen = choose_threads(loaded.parameters, asked, torch.get_num_threads())
    torch.set_num_threads(chosen)
    return chosen


def choose_threads(parameters: int, asked: int, library: int) -> int:
    """`asked` if that is not 0; else one for a small model and `library`, torch's own choice, for
    others."""
    if asked:
        return asked
    return 1 if parameters < SMALL_MODEL_PARAMETERS else library
