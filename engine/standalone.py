"""Standalone: the engine without NATS and S3: `torchrun ... -m engine --request FILE --out DIR`.

In: a request as JSON, a folder, and in it the picture that the request names, if any. Out: video.mp4, poster.jpg and
manifest.json in the folder, and one JSON line per event on standard output. What happens between is the same as for a
job of the system; a run that was ended goes on from the checkpoints in the folder when the same command is given again.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.contract.artifact import completed_data
from engine.contract.errors import Invalid, JobFailed, Problem
from engine.contract.job import derived_id
from engine.contract.request import Request, parse
from engine.contract.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What the command line asks for."""

    request: Request
    job: str
    """Derived from the request: the same one gives the same seed."""
    out: Path
    models: Path


def read_order(arguments: Sequence[str], settings: Settings) -> Order:
    """The order in these arguments. Raises Invalid; ends the process on a wrong call, as argparse does."""
    parser = argparse.ArgumentParser(prog="python -m engine", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--request", type=Path, required=True, metavar="FILE", help="the request, as JSON")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the video goes, and an image is")
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help=f"one folder per model (default: {settings.models_dir})"
    )
    options = parser.parse_args(arguments)
    try:
        data = json.loads(options.request.read_text())
    except (OSError, ValueError) as error:
        message = f"{options.request} is no request: {error}"
        raise Invalid(Problem(pointer="--request", rule="json", message=message)) from error
    job = derived_id("default", "standalone", json.dumps(data, sort_keys=True))
    models = options.models or Path(settings.models_dir)
    return Order(request=parse(data, job=job), job=job, out=options.out, models=models)


class Console:
    """A voice whose every word is a JSON line."""

    def started(self, *, world_size: int) -> None:
        """All ranks are up."""
        _say("started", {"world_size": world_size})

    def progress(self, data: Mapping[str, Any], *, number: int) -> None:
        """The run reached this point."""
        _say("progress", {**data, "number": number})

    def drained(self) -> None:
        """The run ends because it was told to."""
        _say("drained", {})

    def completed(self, manifest: bytes) -> None:
        """The artifacts are in the folder."""
        _say("completed", completed_data(manifest))

    def failed(self, error: JobFailed) -> None:
        """There will be no video."""
        _say("failed", {"error": {"code": error.code, "message": error.message}})


def _say(name: str, data: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps({"event": name, **data}, ensure_ascii=False) + "\n")
    sys.stdout.flush()
