"""What can go wrong around the protocol: the operator's settings, the disk, the engine, the model
hub.

Every message is fit for a person: what is wrong, and what to do about it.
"""

from __future__ import annotations

from piecework.base.errors import PieceworkError


class ConfigError(PieceworkError):
    """A setting is missing, unknown or out of bounds; names it."""


class KeyFileError(PieceworkError):
    """A key or certificate file is missing, unreadable or does not open with the password given."""


class JournalError(PieceworkError):
    """The journal could not be written or read. Nothing may be promised any more: the daemon
    stops."""


class JournalLocked(JournalError):
    """Another process holds the journal."""


class JournalMismatch(JournalError):
    """The journal belongs to another chain, escrow or operator."""


class JournalCorrupt(JournalError):
    """A row is not what was written, or is missing."""


class EngineUnavailable(PieceworkError):
    """The engine process is not there, or does not answer in time. It is being restarted."""


class EngineStartError(PieceworkError):
    """The engine process could not load its model at all."""


class PromptRejected(PieceworkError):
    """The chat template cannot carry the messages."""


class EndpointLost(PieceworkError):
    """A vLLM endpoint does not answer, breaks off, or says what vLLM does not say. Another may do
    better.

    `certain`: asking again would not help now, as when nobody listens or the engine behind it has
    died.
    """

    def __init__(self, message: str, *, certain: bool = False) -> None:
        super().__init__(message)
        self.certain = certain


class EndpointUnfit(PieceworkError):
    """A vLLM endpoint answers and serves something else than the settings say: the operator has to
    act."""


class RequestDeclined(PieceworkError):
    """A vLLM endpoint declines this one request; it would decline it anywhere."""


class AdminError(PieceworkError):
    """The daemon's admin port does not answer, or refuses."""


class NotFunded(PieceworkError):
    """The operator key lacks tokens or gas."""


class HubError(PieceworkError):
    """The model hub cannot be reached, or does not answer as its interface has it."""


class HubRefusal(PieceworkError):
    """The model hub declines: no such model or revision, or not for this user."""


class ModelRefused(PieceworkError):
    """The repository holds no checkpoint that the engine may load. No weights were downloaded."""


class ModelStoreError(PieceworkError):
    """The folder of pulled models cannot take what it should: full, locked, damaged, not
    writable."""


class ModelNotPulled(PieceworkError):
    """A model is named that is not in the store, or not all of it; names the command to run."""
