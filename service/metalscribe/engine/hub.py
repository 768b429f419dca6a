"""The model hub, seen through huggingface_hub: what a repository holds at a commit, and fetching one file of it.

``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE`` and the usual proxy variables mean what they mean to huggingface_hub.
Files come over plain HTTP ranges rather than the hub's chunk storage: since huggingface_hub 2 its own download functions
throw an unfinished file away, and over a slow line a restart from zero may never end.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from metalscribe.engine.manifest import COMMIT, MODEL_FILES, REQUIRED, VOCABULARIES, git_blob_id, sha256_of
from metalscribe.errors import ConfigurationError, ModelMissing, StorageFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

_API_TIMEOUT_SECONDS = 30.0
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on the hub; ``sha256`` for one in large-file storage, ``blob_id`` (git's SHA-1) for any other."""

    name: str
    size: int
    sha256: str | None
    blob_id: str | None

    @property
    def content_id(self) -> str:
        """Names the content, so that a partial file is only ever continued with the same content."""
        return self.sha256 or self.blob_id or ""

    def matches(self, path: Path) -> bool:
        """Whether the file at ``path`` has this size and digest."""
        if path.stat().st_size != self.size:
            return False
        return sha256_of(path) == self.sha256 if self.sha256 else git_blob_id(path) == self.blob_id


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a model that a repository holds at one commit (40 hexadecimal digits)."""

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]


def look_up(repository: str, revision: str | None, *, endpoint: str | None = None) -> Snapshot:
    """Ask the hub which commit a revision is (None: the repository's default branch) and what a model's files are there.

    Raises:
        ModelMissing: no such repository or revision, no access, no CTranslate2 Whisper model in it, hub unreachable.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415  (slow to import, and only downloads need it)

    api = HfApi(endpoint=endpoint, library_name="metalscribe")
    with explained(repository, revision, endpoint):
        try:
            info = api.model_info(repository, revision=revision, files_metadata=True, timeout=_API_TIMEOUT_SECONDS)
        except (ValueError, KeyError, TypeError) as error:
            # A proxy's login page, or JSON of another shape.
            raise ModelMissing(
                f"{_host(endpoint)} did not answer like a model hub ({type(error).__name__}); check HF_ENDPOINT and the proxy."
            ) from error
    if not info.sha or not COMMIT.fullmatch(info.sha):
        raise ModelMissing(f"The hub did not say which commit of {repository} it serves; check HF_ENDPOINT.")
    files = tuple(
        _remote_file(repository, sibling)
        for sibling in sorted(info.siblings or (), key=lambda sibling: sibling.rfilename)
        # Whole names only: this also keeps a repository from writing anywhere else.
        if sibling.rfilename in MODEL_FILES
    )
    names = {file.name for file in files}
    lacking = [name for name in REQUIRED if name not in names]
    if not names.intersection(VOCABULARIES):
        lacking.append(" or ".join(VOCABULARIES))
    if lacking:
        raise ModelMissing(f"{repository} is not a CTranslate2 Whisper model: it has no {', no '.join(lacking)}.")
    return Snapshot(repository, info.sha, files)


def fetch(
    snapshot: Snapshot,
    file: RemoteFile,
    partial: Path,
    *,
    progress: Callable[[str, int, int | None], None] | None = None,
    endpoint: str | None = None,
) -> None:
    """Download one file into ``partial``, continuing what is there already; short interruptions are retried.

    Raises:
        ModelMissing: the hub cannot be reached, refused, or hung up; what arrived stays in ``partial``.
        StorageFull: no space left.
    """
    from huggingface_hub import hf_hub_url  # noqa: PLC0415
    from huggingface_hub.file_download import http_get  # noqa: PLC0415
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # noqa: PLC0415

    done = partial.stat().st_size if partial.exists() else 0
    if done > file.size:
        partial.unlink()
        done = 0
    with explained(snapshot.repository, snapshot.commit, endpoint), partial.open("ab") as handle:
        url = hf_hub_url(snapshot.repository, file.name, revision=snapshot.commit, endpoint=endpoint)
        headers = build_hf_headers(library_name="metalscribe")
        headers["Accept-Encoding"] = "identity"  # ranges count the bytes of the file, not of a compressed answer
        http_get(
            url,
            handle,
            resume_size=done,
            headers=headers,
            expected_size=file.size,
            displayed_filename=file.name,
            tqdm_class=_bar(file.name, progress),
        )


@contextmanager
def explained(repository: str, revision: str | None, endpoint: str | None) -> Iterator[None]:
    """Turn what huggingface_hub and the disk may raise into one sentence for the operator."""
    import httpx2  # noqa: PLC0415  (the HTTP client of huggingface_hub)
    from huggingface_hub import errors  # noqa: PLC0415

    host = _host(endpoint)
    at = f" at revision {revision}" if revision else ""
    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise ModelMissing(f"HF_HUB_OFFLINE forbids downloading {repository}; unset it for the download.") from None
    except errors.GatedRepoError:
        raise ModelMissing(
            f"{repository} is gated: accept its terms on {host}, then set HF_TOKEN to a token of that account."
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelMissing(
            f"{host} has no model {repository}, or it is private: check the name, or set HF_TOKEN to a token that may read it."
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelMissing(f"{repository} has no revision {revision}; check it on {host}.") from None
    except errors.EntryNotFoundError:
        raise ModelMissing(
            f"{host} lists a file of {repository}{at} that it does not have; try another mirror."
        ) from None
    except errors.HfHubHTTPError as error:
        raise ModelMissing(_refusal(host, repository, error.response.status_code)) from None
    except httpx2.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise ModelMissing(
            f"Cannot reach {host} ({reason}); check network and proxy, then run the download again."
        ) from None
    except OSError as error:
        raise _disk_error(error, repository, host) from error


def _host(endpoint: str | None) -> str:
    from huggingface_hub import constants  # noqa: PLC0415

    return urlsplit(endpoint or constants.ENDPOINT).hostname or "The hub"


def _remote_file(repository: str, sibling: Any) -> RemoteFile:
    sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
    size = sibling.lfs.size if sibling.lfs is not None else sibling.size
    if size is None or not (sha256 or sibling.blob_id):
        raise ModelMissing(
            f"The hub gives no size or checksum for {sibling.rfilename} of {repository}, so it could not be verified; "
            "use another mirror."
        )
    return RemoteFile(sibling.rfilename, size, sha256, sibling.blob_id)


def _refusal(host: str, repository: str, status: int) -> str:
    if status in {401, 403}:
        return f"{host} refused access to {repository} ({status}): check that HF_TOKEN is valid and may read it."
    if status == 429:
        return f"{host} answers no more requests for now (429); wait a few minutes, or set HF_TOKEN for a higher limit."
    return f"{host} answered {status} for {repository}; try again later."


def _disk_error(error: OSError, repository: str, host: str) -> ModelMissing | StorageFull | ConfigurationError:
    if error.errno in _FULL:
        return StorageFull(
            f"No space left in the models directory while downloading {repository}; free some, then run the download again."
        )
    if error.errno in _FORBIDDEN:
        return ConfigurationError(
            f"No permission for {Path(str(error.filename)).name!r} while downloading {repository}; run the download as the "
            "service's user, or set METALSCRIBE_STATE_DIR."
        )
    if error.errno is None:  # raised by huggingface_hub when the answer was shorter or longer than announced
        return ModelMissing(f"{host} sent an incomplete file of {repository}; run the download again to continue.")
    return ModelMissing(f"Downloading {repository} failed: {error.strerror}.")


def _bar(name: str, progress: Callable[[str, int, int | None], None] | None) -> Any:
    """Make a class that huggingface_hub takes for a progress bar and that reports to ``progress`` instead."""

    class Bar:
        def __init__(self, *, total: int | None = None, initial: int = 0, **_: Any) -> None:
            self._total = total
            self._done = initial
            self.update(0)

        def __enter__(self) -> Self:
            return self

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
        ) -> None:
            pass

        def update(self, amount: int = 1) -> None:
            self._done += amount
            if progress is not None:
                progress(name, self._done, self._total)

    return Bar
