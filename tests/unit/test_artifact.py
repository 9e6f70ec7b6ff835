"""The manifest of an attempt: complete enough to tell the outcome from its bytes alone."""

import hashlib

from engine.contract.artifact import Artifact, completed_data, decode, encode
from engine.contract.schemas import validate
from tests.make import a_manifest, an_event

FACTS = {"width": 128, "height": 96, "num_frames": 9, "fps": 8, "duration_s": 1.125}


def test_a_manifest_survives_the_way_through_its_bytes() -> None:
    assert decode(encode(a_manifest())) == a_manifest()


def test_the_same_manifest_is_the_same_bytes() -> None:
    assert encode(decode(encode(a_manifest()))) == encode(a_manifest())


def test_an_artifact_is_described_by_its_bytes() -> None:
    artifact = Artifact.of(b"video", key="video.mp4", content_type="video/mp4", facts=FACTS)

    assert artifact.to_json() == {
        "key": "video.mp4",
        "content_type": "video/mp4",
        "size_bytes": 5,
        "sha256": hashlib.sha256(b"video").hexdigest(),
        **FACTS,
    }


def test_the_bytes_of_a_manifest_are_enough_for_the_completed_event() -> None:
    manifest = a_manifest(attempt=2)
    body = encode(manifest)

    data = completed_data(body)

    assert validate(an_event("completed", **data)).data["artifacts"]["video"]["num_frames"] == 9
    assert data["artifacts"]["video"] == {**manifest.artifacts["video"].to_json(), **FACTS}
    assert data["artifacts"]["manifest"]["sha256"] == hashlib.sha256(body).hexdigest()
    assert data["artifacts"]["manifest"]["size_bytes"] == len(body)
    assert (data["attempt"], data["timings"]) == (2, {"loading": 2.0, "denoising": 30.0})
