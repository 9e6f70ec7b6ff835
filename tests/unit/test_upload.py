"""What an upload may be called, and how its type is known."""

import re

import pytest

from engine.contract.job import ID_PATTERN, artifact_key, upload_key
from engine.contract.upload import EXTENSIONS, NAME_PATTERN, type_of
from tests.make import JOB, TENANT


@pytest.mark.parametrize(
    ("head", "content_type"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\r", "image/png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0\1", "image/jpeg"),
        (b"RIFF\x24\0\0\0WEBP", "image/webp"),
        (b"RIFF\x24\0\0\0WAVE", None),
        (b"GIF89a\1\0\1\0\0\0", None),
        (b"\x89PN", None),
        (b"", None),
    ],
)
def test_a_type_is_known_by_the_first_bytes(head: bytes, content_type: str | None) -> None:
    assert type_of(head) == content_type
    assert content_type is None or content_type in EXTENSIONS


@pytest.mark.parametrize("name", ["a", "boat.png", "A-1_b..c", "-", "_.", "0" * 128])
def test_a_name_of_letters_digits_and_three_signs_is_one(name: str) -> None:
    assert re.fullmatch(NAME_PATTERN, name)


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "a/b", "a b", "a\n", "\u00e4", "a\0", "a%2f", "a\\b"])
def test_any_other_name_is_none(name: str) -> None:
    assert not re.fullmatch(NAME_PATTERN, name)


def test_an_upload_is_not_among_the_artifacts_of_any_job() -> None:
    assert not re.fullmatch(ID_PATTERN, "uploads")
    assert upload_key(TENANT, "a").split("/")[1] != artifact_key(TENANT, JOB, 1, "a").split("/")[1]
