"""API keys: what the file has, who is let in, what happens when it changes under a running process."""

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.contract.errors import Invalid, NotFound
from functions import keys
from functions.keys import Key, KeyFile, add_key, new_key, read_keys, revoke_key


def a_key(path: Path, **over: Any) -> tuple[Key, str]:
    options: dict[str, Any] = {"tenant": "acme", "scopes": ("read",), "expires_at": None, "note": "", **over}
    key, text = new_key(**options)
    add_key(path, key)
    return key, text


def test_a_key_is_known_by_its_text_and_the_file_has_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, text = a_key(path)

    assert KeyFile(path).find(text) == key
    assert text.rpartition("_")[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "change", [lambda t: t[:-1], lambda t: t + "x", lambda t: t.replace("cvk_", "cvk_x"), lambda _: "cvk_"]
)
def test_any_other_text_is_not_known(tmp_path: Path, change: Any) -> None:
    _, text = a_key(tmp_path / "keys.json")

    assert KeyFile(tmp_path / "keys.json").find(change(text)) is None


def test_an_expired_key_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, old = a_key(path, expires_at=datetime.now(UTC) - timedelta(seconds=2))
    _, young = a_key(path, expires_at=datetime.now(UTC) + timedelta(hours=1))

    assert KeyFile(path).find(old) is None
    assert KeyFile(path).find(young)


def test_a_change_of_the_file_counts_and_a_broken_file_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_LOOK_S", 0.0)
    path = tmp_path / "keys.json"
    first, text = a_key(path)
    known = KeyFile(path)
    _, later = a_key(path)
    both = (known.find(text), known.find(later))
    path.write_text("{")
    broken = known.find(text)
    add = json.dumps({"keys": []})
    path.write_text(add)

    assert all(both)
    assert broken == first
    assert known.find(text) is None


def test_a_revoked_key_is_gone_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, _ = a_key(path)
    second, _ = a_key(path)
    revoke_key(path, first.id)

    assert list(read_keys(path)) == [second.id]
    with pytest.raises(NotFound, match=first.id):
        revoke_key(path, first.id)


@pytest.mark.parametrize(
    ("over", "named"),
    [
        ({"tenant": "Not A Tenant"}, "tenant"),
        ({"scopes": ["all"]}, "scopes"),
        ({"scopes": []}, "scopes"),
        ({"sha256": "secret"}, "sha256"),
        ({"expires_at": "soon"}, "expires_at"),
        ({"id": "x"}, "id"),
        ({"colour": "red"}, "no file of keys"),
    ],
)
def test_a_bad_entry_is_named(tmp_path: Path, over: dict[str, Any], named: str) -> None:
    path = tmp_path / "keys.json"
    a_key(path)
    entry = {**json.loads(path.read_text())["keys"][0], **over}
    path.write_text(json.dumps({"keys": [entry]}))

    with pytest.raises(Invalid, match=named):
        KeyFile(path)


@pytest.mark.parametrize("text", ["", "[]", '{"keys": 7}', "\0"])
def test_a_file_that_is_none_of_keys_says_what_one_is(tmp_path: Path, text: str) -> None:
    (tmp_path / "keys.json").write_text(text)

    with pytest.raises(Invalid, match="cinevent keys new"):
        KeyFile(tmp_path / "keys.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"none\.json"):
        KeyFile(tmp_path / "none.json")
