"""OpenAI's /v1/videos over the same jobs, for clients that speak it: an official SDK needs another base_url only.

Beside `prompt`, `size`, `seconds`, `model` and `input_reference` a caller may give any field of our `input` by its own
name (`extra_body` in the SDK). Errors have OpenAI's shape.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flask import Response, jsonify, request
from werkzeug.exceptions import HTTPException, UnsupportedMediaType

from engine.contract.codec import loads
from engine.contract.errors import CineventError, Conflict, Invalid, Problem
from engine.contract.job import Job, State
from engine.contract.models import CATALOG, ModelRow
from engine.contract.request import PROMPT_MAX_CHARACTERS
from functions.submit import change, handler, uploads
from functions.submit.accept import accept, trace
from functions.submit.fetch import with_upload
from functions.submit.reply import file_response
from functions.submit.route import Answer, Call, Parameter, Route, ref
from functions.submit.shown import FILES, retry_after_s
from functions.web import http_error, known_error, read_body

_STATUS = {State.PENDING: "queued", State.PROCESSING: "in_progress", State.COMPLETED: "completed"}
_VARIANTS = {"video": "video", "thumbnail": "poster"}
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)
_NUMBERS = {"guidance_scale": float, "guidance_scale_2": float, "flow_shift": float} | dict.fromkeys(
    ("width", "height", "num_frames", "fps", "steps", "seed", "crf"), int
)
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
# Which of OpenAI's fields a rule of ours is about.
_PARAMS = {"width": "size", "height": "size", "num_frames": "seconds", "image": "input_reference"}


def create(call: Call) -> Response:
    """Ask for a video."""
    data = _to_request(_given(call))
    key = handler.key_of(request.headers.get("Idempotency-Key"))
    event = handler.from_json(
        with_upload(call, data), tenant=call.tenant, key=key, extensions=trace(), now=datetime.now(UTC)
    )
    job, _ = accept(call, event)
    if job is None:
        raise Invalid(Problem(pointer="/Idempotency-Key", rule="reused", message="the key has another request"))
    return jsonify(video_json(job))


def retrieve(call: Call, video: str) -> Response:
    """A video, finished or not."""
    job = call.find(video)
    response = jsonify(video_json(job))
    if (seconds := retry_after_s(job)) is not None:
        response.headers["openai-poll-after-ms"] = str(min(seconds, 2) * 1000)
    return response


def content(call: Call, video: str) -> Response:
    """The file."""
    job = call.find(video)
    variant = request.args.get("variant", "video")
    if variant not in _VARIANTS:
        message = f"variant is {variant[:40]!r}; allowed: {', '.join(_VARIANTS)}"
        raise Invalid(Problem(pointer="/variant", rule="enum", message=message))
    if job.state is not State.COMPLETED:
        raise Conflict(f"video {video} is {_STATUS.get(job.state, 'failed')}; it can be read when it is completed")
    name = _VARIANTS[variant]
    made = job.outcome["artifacts"][name]
    file_name = f"{job.id}.{FILES[name].rpartition('.')[2]}"
    return file_response(call, made, name=file_name, content_type=made["content_type"])


def page(call: Call) -> Response:
    """Videos, the newest first."""
    if (order := request.args.get("order", "desc")) != "desc":
        raise Invalid(Problem(pointer="/order", rule="enum", message=f"order is {order[:40]!r}; allowed: desc"))
    limit = handler.limit_of(request.args.get("limit"))
    after = request.args.get("after")
    before = call.find(after).accepted_sequence if after is not None else None
    found = call.deps.history.page(call.tenant, limit=limit, before=before)
    data = [video_json(job) for job in found.jobs]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return jsonify(object="list", data=data, has_more=found.cursor is not None, **ends)


def delete(call: Call, video: str) -> Response:
    """Erase a video that is finished or failed."""
    job = call.find(video)
    if not job.state.is_final:
        raise Conflict(f"video {video} is {_STATUS[job.state]}; it can be deleted once it has ended")
    change.erase(call, video)
    return jsonify(id=video, object="video.deleted", deleted=True)


def video_json(job: Job) -> dict[str, Any]:
    """A job as OpenAI's Video."""
    given = job.request.input
    error = job.outcome.get("error")
    if job.state is State.CANCELLED:
        error = {"code": "cancelled", "message": "the job was cancelled"}
    percent = 100 if job.state is State.COMPLETED else int(job.progress.get("percent", 0))
    return {
        "id": job.id,
        "object": "video",
        "status": _STATUS.get(job.state, "failed"),
        "progress": percent,
        "model": job.request.model,
        "prompt": given.prompt,
        "size": f"{given.width}x{given.height}",
        # From the first frame to the last.
        "seconds": f"{round((given.num_frames - 1) / given.fps, 3):g}",
        "created_at": int(job.created_at.timestamp()),
        "completed_at": int(job.finished_at.timestamp()) if job.state is State.COMPLETED and job.finished_at else None,
        "expires_at": None,
        "error": error and {"code": error["code"], "message": error["message"]},
        "remixed_from_video_id": None,
    }


def as_openai(error: CineventError | HTTPException) -> Response:
    """An error in OpenAI's shape, with the status and headers that it has elsewhere."""
    response = http_error(error) if isinstance(error, HTTPException) else known_error(error)
    told = response.get_json()
    param = None
    if isinstance(error, Invalid):
        name = error.problems[0].pointer.rpartition("/")[2]
        param = _PARAMS.get(name, name) or None
    kind = _TYPES.get(response.status_code, "server_error" if response.status_code >= 500 else "invalid_request_error")
    response.set_data(
        jsonify(error={"message": told["detail"], "type": kind, "param": param, "code": told["code"]}).get_data()
    )
    response.content_type = "application/json"
    return response


def _given(call: Call) -> dict[str, Any]:
    """The fields of the body, a form's as the types that they stand for; a picture is stored and named."""
    if request.is_json:
        given = loads(read_body())
        if not isinstance(given, dict):
            raise Invalid(Problem(pointer="", rule="type", message="the body is not a JSON object"))
        return given
    if request.mimetype not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise UnsupportedMediaType("allowed: application/json, multipart/form-data")
    uploads.allow_picture()
    fields: dict[str, Any] = {name: _number(name, value) for name, value in request.form.items()}
    if picture := request.files.get("input_reference"):
        fields["image"] = uploads.take(call, picture.stream)
    return fields


def _number(name: str, text: str) -> Any:
    """The number that a form's text stands for; what is none stays as it is, for the rules to name."""
    try:
        return _NUMBERS[name](text)
    except (KeyError, ValueError):
        return text


def _to_request(given: Mapping[str, Any]) -> dict[str, Any]:
    """Our request for OpenAI's fields. Raises Invalid about `size`, `seconds` and `input_reference`."""
    own = {name: value for name, value in given.items() if name not in ("model", "size", "seconds", "input_reference")}
    model = given.get("model")
    row = CATALOG.get(model) if isinstance(model, str) else None
    if "size" in given:
        own |= _size(given["size"])
    if "seconds" in given and row is not None:
        own["num_frames"] = _frames(given["seconds"], own.get("fps", row.fps.default), row)
    if "input_reference" in given:
        own["image"] = _address(given["input_reference"])
    return {**({"model": model} if "model" in given else {}), "input": own}


def _address(reference: Any) -> str:
    """Where a picture is that comes neither as a file of a form nor as an upload."""
    address = reference.get("image_url") if isinstance(reference, dict) else None
    if isinstance(address, str) and address.startswith("https://"):
        return address
    message = 'send the picture as a file of a form, or {"image_url": "https://..."}, or name an upload in `image`'
    raise Invalid(Problem(pointer="/input_reference", rule="type", message=message))


def _size(text: Any) -> dict[str, int]:
    found = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise Invalid(Problem(pointer="/size", rule="pattern", message="size is not WIDTHxHEIGHT, such as 1280x720"))
    return {"width": int(found[1]), "height": int(found[2])}


def _frames(seconds: Any, fps: Any, row: ModelRow) -> int:
    """As many frames as come closest: a model makes k times its stride, and one."""
    try:
        wanted = float(seconds) * float(fps)
        return round(wanted / row.temporal_stride) * row.temporal_stride + 1
    except (TypeError, ValueError, OverflowError) as error:
        message = f"seconds is {str(seconds)[:40]!r}; allowed: a number, such as 4"
        raise Invalid(Problem(pointer="/seconds", rule="type", message=message)) from error


_VIDEO = Parameter(name="video", text="the video's id: its job's", schema=ref("JobId"), place="path")
_PROBLEM = ref("OpenAIError")
_FIELDS: dict[str, Any] = {
    "type": "object",
    "required": ["model", "prompt"],
    "properties": {
        "model": ref("Model"),
        "prompt": {"type": "string", "minLength": 1, "maxLength": PROMPT_MAX_CHARACTERS},
        "size": {"type": "string", "pattern": r"^\d{1,5}x\d{1,5}$", "examples": ["1280x704"]},
        "seconds": {"type": "string", "pattern": r"^\d{1,3}(\.\d{1,3})?$", "examples": ["4"]},
    },
}


def _route(method: str, path: str, view: Any, text: str, answers: Mapping[int, Answer], **more: Any) -> Route:
    scope = "read" if method == "GET" else "write"
    return Route(
        method=method,
        path=path,
        view=view,
        text=text,
        scope=scope,
        group="openai",
        answers=answers,
        on_error=as_openai,
        **more,
    )


def _refusal(text: str) -> Answer:
    return Answer(text=text, schema=_PROBLEM)


ROUTES = (
    _route(
        "POST",
        "/v1/videos",
        create,
        "OpenAI: create a video.",
        {
            200: Answer(text="the video, queued", schema=ref("OpenAIVideo")),
            400: _refusal("no JSON"),
            413: _refusal("the body is too large"),
            415: _refusal("another media type"),
            422: _refusal("it breaks a rule"),
            429: _refusal("the tenant has as many jobs as it may have for now"),
        },
        body={
            "application/json": _FIELDS,
            "multipart/form-data": {
                **_FIELDS,
                "properties": {**_FIELDS["properties"], "input_reference": {"type": "string", "format": "binary"}},
            },
        },
    ),
    _route(
        "GET",
        "/v1/videos",
        page,
        "OpenAI: list videos, the newest first.",
        {
            200: Answer(text="a page", schema=ref("OpenAIPage")),
            404: _refusal("there is no such video to go on after"),
            422: _refusal("a parameter breaks a rule"),
        },
        parameters=(
            Parameter(name="after", text="the last id of the page before", schema=ref("JobId")),
            Parameter(name="limit", text="how many", schema={"type": "integer", "minimum": 1, "maximum": 100}),
            Parameter(name="order", text="the newest first", schema={"enum": ["desc"]}),
        ),
    ),
    _route(
        "GET",
        "/v1/videos/<video>",
        retrieve,
        "OpenAI: retrieve a video.",
        {
            200: Answer(
                text="the video",
                schema=ref("OpenAIVideo"),
                headers={"openai-poll-after-ms": "when to ask again; absent once it has ended"},
            )
        },
        parameters=(_VIDEO,),
    ),
    _route(
        "GET",
        "/v1/videos/<video>/content",
        content,
        "OpenAI: download a video, or its thumbnail.",
        {
            200: Answer(
                text="the file, if the store has no addresses of its own",
                media_types=("video/mp4", "image/jpeg"),
                schema={"type": "string", "format": "binary"},
            ),
            206: Answer(
                text="a part of it",
                media_types=("video/mp4", "image/jpeg"),
                schema={"type": "string", "format": "binary"},
            ),
            302: Answer(text="where anybody may read it for a while", headers={"Location": "a link that expires"}),
            304: Answer(text="the reader has it (If-None-Match)"),
            409: _refusal("it is not completed"),
            416: _refusal("the file has no such part"),
            422: _refusal("there is no such variant"),
        },
        parameters=(_VIDEO, Parameter(name="variant", text="which file", schema={"enum": list(_VARIANTS)})),
    ),
    _route(
        "DELETE",
        "/v1/videos/<video>",
        delete,
        "OpenAI: delete a video that has ended.",
        {
            200: Answer(text="it is gone", schema=ref("OpenAIDeleted")),
            409: _refusal("it has not ended"),
        },
        parameters=(_VIDEO,),
    ),
)
