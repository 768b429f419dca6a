"""Everything that can go wrong for a reason worth telling, each with a stable code.

The HTTP status of each lives in :mod:`metalscribe.api.problems`, the exit status in :mod:`metalscribe.cli`.
A message names what is wrong and how to mend it, in words for an operator, and never holds a secret or a path of the server.
"""

from __future__ import annotations

from typing import ClassVar


class MetalscribeError(Exception):
    """Root of the hierarchy; ``code`` is stable and safe to script against."""

    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class ConfigurationError(MetalscribeError):
    """The settings cannot work."""

    code = "configuration_error"
    title = "Configuration error"


# --- what the caller sent ---------------------------------------------------------------------------------------------


class InvalidParameter(MetalscribeError):
    """A parameter is unknown, malformed or out of range; ``parameter`` names it."""

    code = "invalid_parameter"
    title = "Invalid parameter"

    def __init__(self, detail: str, parameter: str | None = None) -> None:
        super().__init__(detail)
        self.parameter = parameter


class UploadTooLarge(MetalscribeError):
    """More bytes, or more seconds of audio, than the settings allow."""

    code = "too_large"
    title = "Recording too large"


class UploadStalled(MetalscribeError):
    """The caller stopped sending in the middle of a recording."""

    code = "upload_stalled"
    title = "Upload stalled"


class UnsupportedMedia(MetalscribeError):
    """The bytes are not audio or video."""

    code = "unsupported_media"
    title = "Not audio or video"


class UndecodableMedia(MetalscribeError):
    """Audio or video by its bytes, but damaged, empty, encrypted or without a decoder."""

    code = "undecodable_media"
    title = "Media cannot be decoded"


class NoAudioTrack(UndecodableMedia):
    """The container has no audio stream, or not the one asked for."""

    code = "no_audio_track"
    title = "No audio track"


class AddressRefused(MetalscribeError):
    """A URL that the service will not connect to."""

    code = "address_refused"
    title = "Address refused"


class FetchFailed(MetalscribeError):
    """A permitted URL that did not yield the recording."""

    code = "fetch_failed"
    title = "Recording could not be fetched"


# --- who asks ---------------------------------------------------------------------------------------------------------


class Unauthenticated(MetalscribeError):
    """No API key, or one that does not exist, is revoked or has expired."""

    code = "unauthenticated"
    title = "API key required"


class Forbidden(MetalscribeError):
    """The key is good but lacks the scope."""

    code = "forbidden"
    title = "Scope missing"


class NotFound(MetalscribeError):
    """No such thing, or not this key's."""

    code = "not_found"
    title = "Not found"


class ModelNotFound(NotFound):
    """No model is called so."""

    code = "model_not_found"
    title = "Model not found"


class Conflict(MetalscribeError):
    """The request contradicts an earlier one."""

    code = "conflict"
    title = "Conflict"


class IdempotencyMismatch(MetalscribeError):
    """An Idempotency-Key came again with another request."""

    code = "idempotency_mismatch"
    title = "Idempotency-Key used for another request"


class RateLimited(MetalscribeError):
    """More requests than the key, or the address, may send."""

    code = "rate_limited"
    title = "Too many requests"

    def __init__(self, detail: str, retry_after: float) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class ConcurrencyLimited(RateLimited):
    """The key has as many requests under way as it may."""

    code = "concurrency_limited"
    title = "Too many requests at one time"


class DailyAudioSpent(RateLimited):
    """The key has had as much audio transcribed as it may on one day."""

    code = "daily_audio_spent"
    title = "Audio of the day spent"


# --- what the machine cannot do now -----------------------------------------------------------------------------------


class TryLater(MetalscribeError):
    """Nothing is wrong with the request; ``retry_after`` seconds from now it may pass."""

    code = "unavailable"
    title = "Unavailable for now"

    def __init__(self, detail: str, retry_after: float = 5.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class QueueFull(TryLater):
    """As many requests are waiting as the settings allow."""

    code = "queue_full"
    title = "Queue full"


class ModelUnavailable(TryLater):
    """The model is loading, waiting for the GPU, or failed to load."""

    code = "model_unavailable"
    title = "Model not available"


class ModelUnloaded(ModelUnavailable):
    """The model was unloaded by force while the request was under way."""

    code = "model_unloaded"
    title = "Model unloaded"


class ShuttingDown(TryLater):
    """The service is draining."""

    code = "shutting_down"
    title = "Shutting down"


class StorageFull(MetalscribeError):
    """The disk, or its budget, is full."""

    code = "storage_full"
    title = "Storage full"


class RecordingMissing(MetalscribeError):
    """A job's recording is not where it was put: the jobs' directory was emptied, or the database is another's copy."""

    code = "recording_missing"
    title = "Recording missing"


class EngineFailed(MetalscribeError):
    """The engine gave up on this recording after trying again."""

    code = "engine_failed"
    title = "Transcription failed"


class ModelMissing(MetalscribeError):
    """The model is not on this machine, or its files are damaged."""

    code = "model_missing"
    title = "Model missing"
