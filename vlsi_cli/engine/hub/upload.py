"""Sending a model to the hub: asked first whether it may be sent, then file by file, then one commit.

The large files go up one after the other with the hub client's ``preupload_lfs_files`` and are not yet visible; the
one ``create_commit`` at the end shows all of them at once. So a reader never sees half a model, a failure leaves the
repository as it was, and a push that is repeated sends nothing twice: the hub knows a file, or the chunks of it, that
arrived before. (``upload_folder`` would commit a long upload in several parts, each of which readers see, and takes
files from one folder only.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vlsi_cli.config.repos import check_repo_name
from vlsi_cli.engine.hub.contents import Item
from vlsi_cli.engine.hub.failures import told
from vlsi_cli.errors import ConfigError, HubError

#: Files from here on are sent one by one, ahead of the commit: 5 MB, above which the hub keeps no file in git.
_LARGE = 5_000_000
_MAIN = "main"


@dataclass(frozen=True)
class Target:
    """Where a push goes.

    Attributes:
        repo: ``owner/name``; made when it does not exist.
        private: make it private; a repository that exists and is public is then refused.
        branch: a branch to push to, made when it does not exist; None: the main one.
        create_pr: open a pull request instead of changing the main branch.
        tag: a tag to put on the commit; it must not exist.
    """

    repo: str
    private: bool = False
    branch: str | None = None
    create_pr: bool = False
    tag: str | None = None

    def __post_init__(self) -> None:
        check_repo_name(self.repo)
        for other, given in (("--branch", self.branch is not None), ("--tag", self.tag is not None)):
            if self.create_pr and given:
                raise ConfigError(
                    f"--create-pr and {other} were both given: a pull request is opened against the main branch",
                    hint="keep one of them",
                )


@dataclass(frozen=True)
class Sent:
    """What the hub answered.

    Attributes:
        url: the page of the repository, or of the pull request.
        commit: the commit that holds the push.
        changed: False when the repository held all of it already.
        removed: weights of an earlier push that a reader would have loaded with these, now gone.
    """

    url: str
    commit: str
    changed: bool
    removed: tuple[str, ...]


class Hub:
    """The hub as the owner of the token on this machine sees it.

    Args:
        target: where to push.

    Raises:
        HubError: there is no token on this machine.
    """

    def __init__(self, target: Target) -> None:
        from huggingface_hub import HfApi, get_token

        self.target = target
        with told("looking for a token"):
            token = get_token()
        if not token:
            raise HubError(
                "there is no token for the hub on this machine",
                hint="log in with `hf auth login`, or set HF_TOKEN to a token with write access",
            )
        self.token: str = token
        self._api: Any = HfApi(token=token, library_name="vlsi")

    def check(self) -> None:
        """Ask, before anything is sent or trained, whether this token may push there. Changes nothing.

        Raises:
            HubError: the hub does not know the token, the token can only read or belongs to nobody who owns such a
                repository, the repository is public where a private one was asked for, or the tag exists.
        """
        target = self.target
        owner = target.repo.partition("/")[0]
        with self._talk("asking who the token belongs to"):
            who = self._api.whoami()
        names = [str(who.get("name", "")), *(str(org.get("name", "")) for org in who.get("orgs") or ())]
        kind = ((who.get("auth") or {}).get("accessToken") or {}).get("role")
        if kind == "read":
            raise HubError(
                "the token on this machine can only read",
                hint="make one with write access, and log in with it",
            )
        info = self._info()
        # Anybody may open a pull request; only an owner may write.
        if owner.casefold() not in {name.casefold() for name in names} and not (target.create_pr and info):
            raise HubError(
                f"the token on this machine belongs to {names[0]}, who may not write to repositories of '{owner}'",
                hint="names that it may write to: " + ", ".join(names),
            )
        if info is None:
            return
        if target.private and info.private is False:
            raise HubError(
                f"{target.repo} exists and is public, but --private was asked for",
                hint="make it private in its settings on the hub, or choose another name",
            )
        if target.tag is not None:
            with self._talk(f"reading the tags of {target.repo}"):
                tags = {ref.name for ref in self._api.list_repo_refs(target.repo).tags}
            if target.tag in tags:
                raise HubError(f"{target.repo} has a tag '{target.tag}' already", hint="choose another --tag")

    def check_card(self, card: str) -> None:
        """Have the hub validate a card's metadata.

        Raises:
            HubError: it finds them invalid; or it cannot be asked.
        """
        from huggingface_hub import get_session
        from huggingface_hub.utils import hf_raise_for_status

        # ModelCard.validate, which does this, asks huggingface.co before huggingface-hub 2 whatever HF_ENDPOINT says
        with self._talk("having the card validated"):
            body = {"repoType": "model", "content": card}
            answer = get_session().post(
                f"{self._api.endpoint}/api/validate-yaml", json=body, headers={"Accept": "text/plain"}
            )
            if answer.status_code == 400:
                raise HubError(f"the hub finds the card's metadata invalid: {' '.join(answer.text.split())}")
            hf_raise_for_status(answer)

    def send(self, items: Sequence[Item], message: str, note: Callable[[str], None]) -> Sent:
        """Make the repository where needed, send the files, commit them, tag the commit.

        Args:
            items: the files.
            message: of the commit.
            note: told of each large file that has arrived.

        Raises:
            HubError: what the hub refused, or where it failed; nothing is visible of a push that was not committed.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        api, target = self._api, self.target
        revision = target.branch or _MAIN
        if self._info() is None:
            with self._talk(f"making the repository {target.repo}"):
                api.create_repo(target.repo, private=target.private or None, exist_ok=True)
        if target.branch is not None:
            with self._talk(f"making the branch {target.branch} of {target.repo}"):
                api.create_branch(target.repo, branch=target.branch, exist_ok=True)
        with self._talk(f"reading {target.repo}"):
            before = api.model_info(target.repo, revision=revision)
        there = {sibling.rfilename for sibling in before.siblings or ()}
        removed = _shadowing(there, items)
        added = [
            CommitOperationAdd(item.path, item.source if isinstance(item.source, bytes) else str(item.source))
            for item in items
        ]
        large = [operation for operation in added if operation.upload_info.size >= _LARGE]
        for number, operation in enumerate(large, start=1):
            name = operation.path_in_repo
            with self._talk(f"sending {name} to {target.repo}"):
                api.preupload_lfs_files(
                    target.repo,
                    [operation],
                    revision=revision,
                    create_pr=target.create_pr,
                    free_memory=False,
                )
            note(f"{name} has arrived ({number} of {len(large)} large files)")
        with self._talk(f"sending {len(items)} files to {target.repo}"):
            commit = api.create_commit(
                target.repo,
                [*(CommitOperationDelete(name) for name in removed), *added],
                commit_message=message,
                revision=revision,
                create_pr=target.create_pr,
            )
        if target.tag is not None:
            with self._talk(f"tagging {target.repo} with '{target.tag}' (the files are there)"):
                api.create_tag(target.repo, tag=target.tag, revision=commit.oid)
        url = commit.pr_url or f"{api.endpoint}/{target.repo}"
        return Sent(url, commit.oid, changed=commit.oid != before.sha, removed=tuple(removed))

    def _info(self) -> Any:
        """What the hub knows of the repository; None when there is none (or none that the token may see)."""
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._talk(f"asking for {self.target.repo}"):
            try:
                return self._api.model_info(self.target.repo)
            except RepositoryNotFoundError as error:
                if error.response is not None and error.response.status_code == 401:
                    raise  # the hub knows the token as little as the repository
                return None

    @contextmanager
    def _talk(self, doing: str) -> Iterator[None]:
        """Talk with the hub: its client keeps quiet, and what it raises becomes one sentence."""
        with told(doing, self.token), _quiet():
            yield


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no log lines of the hub's client inside the block."""
    import warnings

    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    level, silent = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity(logging.CRITICAL)
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if not silent:
            enable_progress_bars()


def _shadowing(there: set[str], items: Sequence[Item]) -> list[str]:
    """Weights at the root of a repository that a reader might load instead of, or beside, those that are sent."""
    sent = {item.path for item in items}
    weights = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
    return sorted(name for name in there - sent if "/" not in name and name.endswith(weights))
