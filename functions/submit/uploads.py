"""Uploads: takes a picture over HTTP into the store, and says whether a request's picture is there.

The bytes are looked at only as far as type and size need: a picture that cannot be decoded fails the job that names it.
"""

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import IO

import imagesize
from flask import Response, jsonify, request
from werkzeug.exceptions import ClientDisconnected, UnsupportedMediaType

from engine.contract.errors import Invalid, Problem
from engine.contract.events import Event
from engine.contract.job import upload_key
from engine.contract.upload import (
    EXTENSIONS,
    NAME_MAX_CHARACTERS,
    NAME_PATTERN,
    UPLOAD_MAX_BYTES,
    UPLOAD_MAX_PIXELS,
    type_of,
)
from functions.submit.route import Answer, Call, Parameter, Route, ref
from functions.web import MAX_BODY_BYTES

# A form's picture, and beside it a request.
_FORM_MAX_BYTES = UPLOAD_MAX_BYTES + MAX_BODY_BYTES


def put(call: Call, name: str) -> Response:
    """Store the body under `name`; another picture of that name is replaced."""
    if not (re.fullmatch(NAME_PATTERN, name) and len(name) <= NAME_MAX_CHARACTERS):
        message = f"allowed: 1 to {NAME_MAX_CHARACTERS} of A-Z, a-z, 0-9, '.', '_' and '-', the first no dot"
        raise Invalid(Problem(pointer="/name", rule="pattern", message=message))
    if request.mimetype not in EXTENSIONS:
        raise UnsupportedMediaType(f"allowed: {', '.join(EXTENSIONS)}; set the Content-Type")
    with tempfile.TemporaryDirectory(prefix="cinevent-") as folder:
        path = Path(folder) / "upload"
        digest = _receive(path)
        size_bytes = path.stat().st_size
        call.deps.store.put(upload_key(call.tenant, name), path, content_type=request.mimetype)
    response = jsonify(name=name, size_bytes=size_bytes, sha256=digest)
    response.status_code = 201
    response.headers["Location"] = request.path
    return response


def allow_picture() -> None:
    """Take a body as large as a form with a picture; werkzeug keeps files of a form on disk, not in memory."""
    request.max_content_length = _FORM_MAX_BYTES


def take(call: Call, picture: IO[bytes]) -> str:
    """Store a picture that did not come as an upload; returns its name as one: its content's. Raises Invalid."""
    content_type = _check(picture, name="the file")
    with tempfile.TemporaryDirectory(prefix="cinevent-") as folder:
        path = Path(folder) / "upload"
        picture.seek(0)
        with path.open("wb") as file:
            shutil.copyfileobj(picture, file)
        with path.open("rb") as file:
            name = f"{hashlib.file_digest(file, 'sha256').hexdigest()}.{EXTENSIONS[content_type]}"
        call.deps.store.put(upload_key(call.tenant, name), path, content_type=content_type)
    return name


def check(call: Call, event: Event) -> None:
    """Raise Invalid if the picture of a `requested` event is not in the store."""
    name = event.data["request"]["input"]["image"]
    if name is None or call.deps.store.exists(upload_key(event.data["tenant"], name)):
        return
    message = f"there is no upload {name}; PUT the picture to /api/v1/uploads/{name} first"
    raise Invalid(Problem(pointer="/input/image", rule="missing", message=message))


def _receive(path: Path) -> str:
    """Write the body to `path`, if it is what it says; returns its sha256."""
    request.max_content_length = UPLOAD_MAX_BYTES
    with path.open("w+b") as file:
        shutil.copyfileobj(request.stream, file)
        # gunicorn ends the stream where a sender hung up.
        if request.content_length not in (None, file.tell()):
            raise ClientDisconnected("the body is shorter than its Content-Length says")
        _check(file, name="the body", expected=request.mimetype)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(file: IO[bytes], *, name: str, expected: str | None = None) -> str:
    """The type of the picture in `file`, which is then at its start. Raises Invalid: no picture, or one too large.

    Reads the head only: a few kilobytes may decode to gigabytes.
    """
    file.seek(0, os.SEEK_END)
    size_bytes = file.tell()
    file.seek(0)
    found = type_of(file.read(12))
    if found is None or found != (expected or found):
        claim = f"the Content-Type is {expected}, " if expected else ""
        message = f"{claim}the bytes of {name} are {found or 'no PNG, JPEG or WebP'}"
        raise Invalid(Problem(pointer="", rule="type", message=message))
    if size_bytes > UPLOAD_MAX_BYTES:
        message = f"{name} is {size_bytes} bytes; allowed: {UPLOAD_MAX_BYTES}"
        raise Invalid(Problem(pointer="", rule="maximum", message=message))
    file.seek(0)
    # (-1, -1) where the head says none: then it is the engine's to refuse.
    width, height = imagesize.get(file, exif_rotation=False)
    file.seek(0)
    if width * height > UPLOAD_MAX_PIXELS:
        message = f"{name} is a picture of {width} x {height} pixels; allowed: {UPLOAD_MAX_PIXELS} in all"
        raise Invalid(Problem(pointer="", rule="max_pixels", message=message))
    return found


ROUTES = (
    Route(
        method="PUT",
        path="/api/v1/uploads/<name>",
        view=put,
        text="Store a picture that requests may start from; another one of that name is replaced.",
        scope="write",
        group="submit",
        parameters=(
            Parameter(
                name="name",
                text="what `input.image` will say",
                schema={"type": "string", "pattern": NAME_PATTERN, "maxLength": NAME_MAX_CHARACTERS},
                place="path",
            ),
        ),
        body={media_type: {"type": "string", "format": "binary"} for media_type in EXTENSIONS},
        answers={
            201: Answer(text="it is stored", schema=ref("Upload"), headers={"Location": "its address here"}),
            400: Answer(text="the body is shorter than it says", schema=ref("Problem")),
            413: Answer(text="the picture is too large", schema=ref("Problem")),
            415: Answer(text="another media type", schema=ref("Problem")),
            422: Answer(text="the name or the bytes break a rule", schema=ref("Problem")),
        },
    ),
)
