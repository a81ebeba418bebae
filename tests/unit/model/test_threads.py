"""How many threads denoise on a CPU."""

from __future__ import annotations

from piecework_model.machine.threads import SMALL_MODEL_PARAMETERS, choose_threads


def test_a_small_model_runs_on_one_thread_and_a_large_one_as_torch_likes() -> None:
    assert choose_threads(SMALL_MODEL_PARAMETERS - 1, 0, 16) == 1
    assert choose_threads(SMALL_MODEL_PARAMETERS, 0, 16) == 16


def test_the_operators_choice_counts_for_every_model() -> None:
    assert choose_threads(1, 5, 16) == choose_threads(SMALL_MODEL_PARAMETERS, 5, 16) == 5
