"""The generated documents are in step with the code, and lead where they say."""

import re
from pathlib import Path

import pytest

from docs.generate import DOCS, pages, stale, write

PAGES = ["events.md", "models.md", "settings.md"]


def test_no_generated_document_is_stale() -> None:
    """`make docs` brings them in step."""
    assert stale() == []


def test_what_was_written_is_in_step(tmp_path: Path) -> None:
    write(tmp_path)

    assert stale(tmp_path) == []


def test_changed_missing_and_left_over_documents_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "events.md").write_text("changed by hand")
    (tmp_path / "settings.md").unlink()
    (tmp_path / "schemas" / "job.renamed.v1.json").write_text("{}")

    assert stale(tmp_path) == ["events.md", "settings.md", "schemas/job.renamed.v1.json"]


def test_a_left_over_document_goes_with_the_next_write(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "schemas" / "job.renamed.v1.json").write_text("{}")

    write(tmp_path)

    assert stale(tmp_path) == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_links_to_files_that_there_are(page: str) -> None:
    links = re.findall(r"\]\((?!https:)([^)#]+)", pages()[page])

    assert [link for link in links if not (DOCS / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_table_is_a_rectangle(page: str) -> None:
    tables = re.findall(r"(?:^\|.*\n?)+", pages()[page], re.MULTILINE)

    widths = [{len(re.findall(r"(?<!\\)\|", line)) for line in each.splitlines()} for each in tables]

    assert tables
    assert [width for width in widths if len(width) > 1] == []
