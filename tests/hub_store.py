"""What the hub of the tests keeps, and its rules for the metadata of a card."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "llama3", "other"}


@dataclass
class Repo:
    """One repository: commits hold whole trees of path -> bytes."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: int = 0

    def commit(self, files: dict[str, bytes], ref: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}{sorted(files)}{ref}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[ref] = oid
        return oid

    def find(self, revision: str) -> str | None:
        known = revision if revision in self.commits else None
        return known or self.branches.get(revision) or self.tags.get(revision)


@dataclass
class Failure:
    """What happens to the next requests whose address holds ``where``: a status, silence, or a dropped line."""

    where: str
    status: int
    times: int
    message: str
    skip: int = 0


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def front_matter(text: str) -> dict[str, Any] | None:
    found = re.match(r"---\n(.*?)\n---\n", text, flags=re.DOTALL)
    return yaml.safe_load(found.group(1)) if found else None


def metadata_errors(text: str) -> list[str]:
    """The hub's rules for the metadata that a card of ours uses."""
    data = front_matter(text)
    if not isinstance(data, dict):
        return ["no metadata"]
    wrong = []
    hub_id = re.compile(r"[\w.-]+/[\w.-]+")
    if "license" in data and data["license"] not in LICENCES:
        wrong.append(f'"license" must be one of {sorted(LICENCES)}')
    if data.get("license") == "other" and not data.get("license_name"):
        wrong.append('"license_name" is required when "license" is other')
    for key in ("base_model", "datasets"):
        values = data.get(key, [])
        if not all(
            isinstance(v, str) and hub_id.fullmatch(v)
            for v in (values if isinstance(values, list) else [values])
        ):
            wrong.append(f'"{key}" must hold ids of the hub')
    if data.get("base_model_relation", "finetune") not in ("finetune", "adapter", "quantized", "merge"):
        wrong.append('"base_model_relation" is unknown')
    if not all(isinstance(tag, str) for tag in data.get("tags", [])):
        wrong.append('"tags" must be strings')
    for model in data.get("model-index", []):
        for result in model.get("results", ()):
            if not all(result.get(part, {}).get("type") for part in ("task", "dataset")) or not result[
                "dataset"
            ].get("name"):
                wrong.append("a result needs a task and a dataset")
            if not all(metric.get("type") and "value" in metric for metric in result.get("metrics", [{}])):
                wrong.append("a metric needs a type and a value")
    return wrong
