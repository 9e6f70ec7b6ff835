"""What an attempt leaves in the store: artifacts, and the manifest that lists them. Pure.

The manifest is stored last: where it stands, the attempt is complete. `completed_data` makes the data of a `completed`
event from the manifest's bytes alone, so that whoever finds a manifest without an event can emit it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.contract.plan import Plan

_FILES = ("artifacts", "inputs")
_OWN = ("key", "content_type", "size_bytes", "sha256")


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """One stored file."""

    key: str
    content_type: str
    size_bytes: int
    sha256: str
    facts: Mapping[str, int | float] = field(default_factory=dict)
    """What else is known of it; of a video: width, height, num_frames, fps, duration_s."""

    @classmethod
    def of(
        cls, body: bytes, *, key: str, content_type: str, facts: Mapping[str, int | float] | None = None
    ) -> "Artifact":
        """The artifact that `body` is when it is stored under `key`."""
        digest = hashlib.sha256(body).hexdigest()
        return cls(key=key, content_type=content_type, size_bytes=len(body), sha256=digest, facts=facts or {})

    def to_json(self) -> dict[str, Any]:
        """The artifact as it stands in events and manifests."""
        return {**{name: getattr(self, name) for name in _OWN}, **self.facts}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Artifact":
        """The inverse of `to_json`."""
        own = {name: data[name] for name in _OWN}
        return cls(**own, facts={name: value for name, value in data.items() if name not in _OWN})


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Everything that made one video, enough to make it again."""

    key: str
    """Its own place in the store."""
    job: str
    tenant: str
    attempt: int
    request: Mapping[str, Any]
    """With every default filled in."""
    seed: int
    plan: Plan
    versions: Mapping[str, str]
    """Of the libraries that computed it."""
    timings: Mapping[str, float]
    """Seconds per stage."""
    artifacts: Mapping[str, Artifact]
    """By name: video, poster."""
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    """What the request only names, as it was read: image."""
    tile: int = 0
    """Side in pixels of the tiles it was decoded in, which change the picture; 0: whole frames."""

    def to_json(self) -> dict[str, Any]:
        """The manifest as a JSON object."""
        files = {part: {name: a.to_json() for name, a in getattr(self, part).items()} for part in _FILES}
        own = {name: getattr(self, name) for name in self.__slots__}
        return {**own, "plan": self.plan.to_json(), **files}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Manifest":
        """The inverse of `to_json`."""
        files = {part: {name: Artifact.from_json(a) for name, a in data.get(part, {}).items()} for part in _FILES}
        return cls(**{**data, "plan": Plan.from_json(data["plan"]), **files})


def encode(manifest: Manifest) -> bytes:
    """The bytes of manifest.json."""
    return json.dumps(manifest.to_json(), indent=2, ensure_ascii=False).encode() + b"\n"


def decode(body: bytes) -> Manifest:
    """The inverse of `encode`."""
    return Manifest.from_json(json.loads(body))


def completed_data(body: bytes) -> dict[str, Any]:
    """The data of the `completed` event, from the bytes of manifest.json."""
    manifest = decode(body)
    own = Artifact.of(body, key=manifest.key, content_type="application/json")
    artifacts = {**manifest.artifacts, "manifest": own}
    return {
        "attempt": manifest.attempt,
        "artifacts": {name: artifact.to_json() for name, artifact in artifacts.items()},
        "timings": dict(manifest.timings),
    }
