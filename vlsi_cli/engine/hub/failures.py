"""What can go wrong between here and the hub, each as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vlsi_cli.engine.backbones.folders import is_network_error
from vlsi_cli.errors import HubError

_SAID = {
    400: ("refuses the request as malformed", None),
    401: ("does not accept the token", "log in again with `hf auth login`, or set HF_TOKEN to a valid token"),
    403: (
        "does not allow this token to write there",
        "use a token with write access to that owner's repositories",
    ),
    404: ("finds no such repository or branch, or the token may not see it", None),
    409: ("reports a conflict: the repository was changed by somebody else at the same moment", None),
    412: ("reports a conflict: the repository was changed by somebody else at the same moment", None),
    413: ("refuses the upload as too large", "free some of the owner's storage on the hub, or send less"),
    429: ("asks to wait: too many requests in a short time", "wait some minutes before trying again"),
}


@contextmanager
def told(doing: str, token: str | None = None) -> Iterator[None]:
    """Turn what the hub's client raises in the block into one sentence; anything else is a defect and passes.

    Args:
        doing: what was being tried, to follow "while".
        token: blotted out of every message.

    Raises:
        HubError: the hub refused, failed, or did not answer.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        problem = _problem(error, doing, token)
        if problem is None:
            raise
        raise problem from None  # the client's own text is long, and repeats addresses and request ids


def _problem(error: Exception, doing: str, token: str | None) -> HubError | None:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, OfflineModeIsEnabled):
            return HubError(
                f"the hub is switched off by HF_HUB_OFFLINE, while {doing}",
                hint="unset HF_HUB_OFFLINE",
            )
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return _refusal(int(cause.response.status_code), cause, doing, token)
    for cause in chain:
        if "Timeout" in type(cause).__name__:
            return HubError(f"the hub did not answer in time while {doing}", hint="try again")
        if is_network_error(cause) or isinstance(cause, ConnectionError):
            return HubError(
                f"the hub cannot be reached while {doing} ({_line(cause, token)})", hint="try again"
            )
    if "metadata in README.md" in str(error):
        return HubError(f"the hub refuses the card: {_line(error, token, last=True)}")
    # hf_xet, which moves large files, raises its errors as RuntimeError; LFS errors of single files come as
    # ValueError and RuntimeError.
    if isinstance(error, RuntimeError | OSError) or "LFS batch" in str(error):
        return HubError(f"the upload failed while {doing}: {_line(chain[-1], token)}")
    return None


def _refusal(code: int, error: Exception, doing: str, token: str | None) -> HubError:
    said, hint = _SAID.get(code, ("refuses", None))
    if code >= 500:
        said, hint = (
            "had an error of its own",
            "try again; https://status.huggingface.co tells whether it is known",
        )
    theirs = (getattr(error, "server_message", None) or "").strip()
    theirs = f", and says: {_blotted(theirs.splitlines()[0], token)}" if theirs else ""
    return HubError(f"the hub {said} (HTTP {code}) while {doing}{theirs}", hint=hint)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _line(error: BaseException, token: str | None, *, last: bool = False) -> str:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return _blotted(lines[-1 if last else 0].strip(), token)


def _blotted(text: str, token: str | None) -> str:
    return text.replace(token, "***") if token else text
