"""The engine on its own command line: what it says of a wrong call, before it imports anything heavy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.__main__ import _compile_dir
from engine.contract.settings import Settings


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "engine", *arguments], capture_output=True, text=True)


def test_a_wrong_call_is_explained(tmp_path: Path) -> None:
    done = run("--request", "request.json")
    assert done.returncode == 2
    assert "--out" in done.stderr


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (None, "No such file"),
        ("{", "is no request"),
        ('{"model": "wan3"}', "model is 'wan3'; allowed: "),
        ('{"model": "tiny-t2v", "input": {"prompt": "a cat", "width": 100}}', "/input/width"),
    ],
)
def test_a_request_that_cannot_be_is_refused_in_one_line(tmp_path: Path, body: str | None, words: str) -> None:
    request = tmp_path / "request.json"
    if body is not None:
        request.write_text(body)
    done = run("--request", str(request), "--out", str(tmp_path / "video"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert words in done.stderr
    assert not (tmp_path / "video").exists()


@pytest.mark.parametrize(
    ("settings", "environ", "expected"),
    [
        ({}, {}, "models/.compiled"),
        ({}, {"TORCHINDUCTOR_CACHE_DIR": "own"}, "own"),
        ({"compile_dir": "shared"}, {"TORCHINDUCTOR_CACHE_DIR": "own"}, "shared"),
    ],
)
def test_what_is_compiled_is_kept_beside_the_models(
    settings: dict[str, str], environ: dict[str, str], expected: str
) -> None:
    assert _compile_dir(Settings(models_dir="models", **settings), environ) == expected


def test_weights_that_are_missing_are_named_on_both_outputs(tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"model": "tiny-t2v", "input": {"prompt": "a cat"}}))
    done = run("--request", str(request), "--out", str(tmp_path / "video"), "--models", str(tmp_path / "models"))
    assert done.returncode == 1
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["event"], last["error"]["code"]) == ("failed", "model_load_failed")
    assert str(tmp_path / "models" / "tiny-t2v") in last["error"]["message"]
