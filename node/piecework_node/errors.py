"""Errors around the protocol: the operator's settings, the disk, the engine, the model hub.

Every message is fit for a person. It says what is wrong and what to do.
"""

from __future__ import annotations

from piecework.base.errors import PieceworkError


class ConfigError(PieceworkError):
    """A setting or an option cannot be used. The text names it."""


class HomeDiffers(PieceworkError):
    """A home has other settings, or another market, than the caller asked for."""


class KeyFileError(PieceworkError):
    """A key or certificate file is missing, unreadable or does not open with the password given."""


class JournalError(PieceworkError):
    """The journal could not be written or read. The daemon stops, as it may promise nothing.

    It is the only error that ends a running daemon.
    """


class JournalLocked(JournalError):
    """Another process holds the journal."""


class JournalMismatch(JournalError):
    """The journal belongs to another chain, escrow or operator."""


class JournalCorrupt(JournalError):
    """A row is not what was written, or is missing."""


class JournalConflict(PieceworkError):
    """Records contradict what the journal holds, or do not fit. Nothing of them was written.

    The disk is well. The job whose records they are ends, and the daemon goes on.
    """


class SaltUsed(JournalConflict):
    """A job with this salt was admitted on this channel before."""


class JobUnusable(PieceworkError):
    """What the journal holds of one job does not suffice to go on with it."""


class EngineUnavailable(PieceworkError):
    """The engine is gone or does not answer in time. It is being restarted."""


class ReplayDeclined(PieceworkError):
    """The engine cannot compute a canvas again. The text says why."""


class EngineStartError(PieceworkError):
    """The engine could not load its model at all."""


class PromptRejected(PieceworkError):
    """The chat template cannot carry the messages."""


class EndpointLost(PieceworkError):
    """A vLLM endpoint does not answer, breaks off, or answers wrongly. Another one may do better.

    `certain`: asking again would not help now. Nobody listens, or the engine behind it has died.
    """

    def __init__(self, message: str, *, certain: bool = False) -> None:
        super().__init__(message)
        self.certain = certain


class EndpointUnfit(PieceworkError):
    """A vLLM endpoint serves something else than the settings say. The operator has to act."""


class RequestDeclined(PieceworkError):
    """A vLLM endpoint declines this request. Every endpoint would."""


class OwnTestRefused(PieceworkError):
    """A test job of the owner cannot run now, or does not fit."""


class AdminError(PieceworkError):
    """The daemon's admin port does not answer, or refuses."""


class NotFunded(PieceworkError):
    """The operator key lacks tokens or gas."""


class HubError(PieceworkError):
    """The model hub cannot be reached, or answers wrongly."""


class HubRefusal(PieceworkError):
    """The model hub declines: it has no such model or revision, or not for this user."""


class ModelRefused(PieceworkError):
    """The repository has no checkpoint that the engine may load. No weights were downloaded."""


class ModelStoreError(PieceworkError):
    """The folder of pulled models is full, locked, damaged or not writable."""


class ModelNotPulled(PieceworkError):
    """A model is not in the store, or not complete. The text names the command to run."""


class UpdateRefused(PieceworkError):
    """A version cannot be brought in. The text says which version runs."""
