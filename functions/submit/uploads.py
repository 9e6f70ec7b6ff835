"""Uploads: takes a picture over HTTP into the store, and says whether a request's picture is there.

The bytes are looked at only as far as their first few: a picture that cannot be decoded fails the job that names it.
"""

import hashlib
import re
import shutil
import tempfile
from pathlib import Path

from flask import Response, jsonify, request
from werkzeug.exceptions import ClientDisconnected, UnsupportedMediaType

from engine.contract.errors import Invalid, Problem
from engine.contract.events import Event
from engine.contract.job import upload_key
from engine.contract.upload import EXTENSIONS, NAME_MAX_CHARACTERS, NAME_PATTERN, UPLOAD_MAX_BYTES, type_of
from functions.deps import Deps


def put(deps: Deps, name: str) -> Response:
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
        deps.store.put(upload_key(deps.settings.tenant, name), path, content_type=request.mimetype)
    response = jsonify(name=name, size_bytes=size_bytes, sha256=digest)
    response.status_code = 201
    response.headers["Location"] = request.path
    return response


def missing(deps: Deps, event: Event) -> Invalid | None:
    """What is wrong with a `requested` event whose picture is not in the store; None if it has none, or is there."""
    name = event.data["request"]["input"]["image"]
    if name is None or deps.store.exists(upload_key(event.data["tenant"], name)):
        return None
    message = f"there is no upload {name}; PUT the picture to /api/v1/uploads/{name} first"
    return Invalid(Problem(pointer="/input/image", rule="missing", message=message))


def _receive(path: Path) -> str:
    """Write the body to `path`, if it is what it says; returns its sha256."""
    request.max_content_length = UPLOAD_MAX_BYTES
    with path.open("w+b") as file:
        shutil.copyfileobj(request.stream, file)
        # gunicorn ends the stream where a sender hung up.
        if request.content_length not in (None, file.tell()):
            raise ClientDisconnected("the body is shorter than its Content-Length says")
        file.seek(0)
        if (found := type_of(file.read(12))) != request.mimetype:
            message = f"the Content-Type is {request.mimetype}, the bytes are {found or 'no PNG, JPEG or WebP'}"
            raise Invalid(Problem(pointer="", rule="type", message=message))
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()
