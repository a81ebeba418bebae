"""What can be wrong, sorted by who is to blame: the request, the checkpoint, or this engine.

This module imports no torch.
"""

from __future__ import annotations

from piecework.base.errors import PieceworkError


class ModelError(PieceworkError):
    """Base of every error of this package."""


class RequestError(ModelError):
    """The request can never run, or not now. Nothing was changed."""


class InvalidRequestError(RequestError):
    """A field of a request is out of bounds. `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class ContextOverflowError(RequestError):
    """Prompt and requested canvases do not fit into the model's context. Both figures in tokens."""

    def __init__(self, needed: int, available: int) -> None:
        super().__init__(f"needs a context of {needed} tokens, the model has {available}")
        self.needed = needed
        self.available = available


class MemoryOverflowError(RequestError):
    """The request's KV cache is larger than all memory set aside for caches. Both figures in
    bytes.
    """

    def __init__(self, needed: int, available: int) -> None:
        super().__init__(
            f"needs a KV cache of {needed} bytes, all sequences together have {available}"
        )
        self.needed = needed
        self.available = available


class DuplicateRequestError(RequestError):
    """A request of that id is already running or waiting."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"request {request_id} is already here")
        self.request_id = request_id


class QueueFullError(RequestError):
    """All sequences are taken and the queue is full. The same request may fit later."""

    def __init__(self, capacity: int) -> None:
        super().__init__(f"queue is full ({capacity} requests)")
        self.capacity = capacity


class PromptError(RequestError):
    """The chat template cannot carry the messages, or they are too long."""


class CheckpointError(ModelError):
    """A checkpoint folder is missing, damaged, of another format, or unsafe.

    path: the file or folder at fault.
    """

    def __init__(self, path: object, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = str(path)


class DeviceError(ModelError):
    """The machine lacks what was asked for, such as a GPU or memory."""


class BenchmarkError(ModelError):
    """The start-up measurement failed: the engine failed on its own fixed prompt."""


class NonFiniteError(ModelError):
    """The model produced NaN or infinity."""

    def __init__(self) -> None:
        super().__init__("the model produced NaN or infinity")


class AuditError(ModelError):
    """An audit has no result."""


class ReplayError(AuditError):
    """The engine failed on a canvas that was to be replayed."""


class OpeningError(AuditError):
    """What a worker opened cannot be a step of this canvas of this model."""


class ImpossibleStepError(OpeningError):
    """A step that a leaf commits to is none that this model makes."""
