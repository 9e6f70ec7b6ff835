"""A manifest alone is enough to say that a job is completed."""

from engine.contract.artifact import Artifact, Manifest, completed_data, decode, encode
from engine.contract.job import artifact_key
from engine.contract.schemas import validate
from tests.make import JOB, TENANT, a_plan, a_request, an_event

FACTS = {"width": 128, "height": 96, "num_frames": 9, "fps": 8, "duration_s": 1.125}


def an_artifact_of(name: str, content_type: str, **facts: float) -> Artifact:
    return Artifact.of(name.encode(), key=artifact_key(TENANT, JOB, 2, name), content_type=content_type, facts=facts)


def a_manifest() -> Manifest:
    return Manifest(
        key=artifact_key(TENANT, JOB, 2, "manifest.json"),
        job=JOB,
        tenant=TENANT,
        attempt=2,
        request=a_request().to_json(),
        seed=7,
        plan=a_plan(),
        versions={"python": "3.11.0", "torch": "2.13.0"},
        timings={"loading": 1.5, "denoising": 30.0},
        artifacts={
            "video": an_artifact_of("video.mp4", "video/mp4", **FACTS),
            "poster": an_artifact_of("poster.jpg", "image/jpeg"),
        },
    )


def test_a_manifest_survives_its_bytes() -> None:
    assert decode(encode(a_manifest())) == a_manifest()


def test_the_completed_event_is_made_of_the_bytes_alone() -> None:
    body = encode(a_manifest())
    data = completed_data(body)
    validate(an_event("completed", **data))
    assert data["artifacts"]["video"] == {**a_manifest().artifacts["video"].to_json(), **FACTS}
    assert data["artifacts"]["manifest"]["size_bytes"] == len(body)
    assert (data["attempt"], data["timings"]) == (2, {"loading": 1.5, "denoising": 30.0})
