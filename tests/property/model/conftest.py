"""What the model tests share: the bundled checkpoint, loaded once, and a prompt for it."""

from __future__ import annotations

import pytest
import torch

from piecework_model.checkpoint.loading import LoadedModel, load
from tests.support.model.prompts import story_prompt

torch.set_num_threads(
    1
)  # equal results whatever else the machine does, and no fighting over two cores


@pytest.fixture(scope="session")
def bundled() -> LoadedModel:
    """The checkpoint that ships with the package, on the CPU."""
    return load(device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def prompt() -> tuple[int, ...]:
    """A request that the bundled model knows how to answer."""
    return story_prompt()
