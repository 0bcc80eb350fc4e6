"""Errors of the Hugging Face Hub, its client or the network, as one line each that ends in what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from merge.errors import HubError, one_line

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

ADVICE = {
    401: "set HF_TOKEN to a valid token or run `hf auth login`",
    403: "set HF_TOKEN to a token that has the right to do this",
    409: "something else is changing the repository: run it again",
    412: "someone committed meanwhile: run it again",
    429: "wait a few minutes and run it again",
}


@contextmanager
def hub_errors(asked: str, *, writing: bool) -> Iterator[None]:
    """Turn whatever huggingface_hub, its HTTP client or hf_xet raises into one HubError line."""
    import httpx2

    try:
        yield
    # A refused connection (httpx2.ConnectError) is an HTTPError but no OSError; hf_xet raises OSError and RuntimeError.
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, RuntimeError) as error:
        raise HubError(f"cannot {asked}: {_reason(error, writing=writing)}") from error


def _reason(error: BaseException, *, writing: bool) -> str:
    """Say what happened and what to do."""
    import httpx2
    from huggingface_hub import constants, errors

    instead = "" if writing else ", or give a local folder"
    # Two wrappers that hide the cause: a file not found in the cache either, and an LFS upload that failed.
    while isinstance(error, (errors.LocalEntryNotFoundError, RuntimeError)) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"offline mode is on; unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE{instead}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"offline mode is on and the cache has no copy; unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE{instead}"
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(error, writing=writing)
    if isinstance(error, httpx2.TransportError):
        where = f"no network: {constants.ENDPOINT} cannot be reached ({one_line(error)})"
        return f"{where}; check the connection, or set HF_ENDPOINT to another Hub{instead}"
    if "metadata in README.md" in str(error):
        return f"{one_line(error)}; mend the header of README.md and push again"
    return one_line(error) or type(error).__name__


def _refusal(error: HfHubHTTPError, *, writing: bool) -> str:
    """Return the Hub's answer and what to do."""
    from huggingface_hub import errors

    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return "the repository is gated; ask for access on its page, then set HF_TOKEN or run `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision; give one of its branches, tags or commits"
    # The Hub answers 401 for a repository one may not see; after create_repo it can only be the token.
    if isinstance(error, errors.RepositoryNotFoundError) and not (writing and status == 401):
        return "no such repository, or a private one; check the id, or set HF_TOKEN or run `hf auth login`"
    advice = ADVICE.get(status, "the Hub is in trouble: try again later" if status >= 500 else "check what it names")
    return f"the Hub answered {status} ({one_line(error.server_message or error.response.reason_phrase)}); {advice}"
