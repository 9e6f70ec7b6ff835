"""What a job made: video and poster, and while it is not done, a preview."""

from collections.abc import Callable
from functools import partial
from typing import Any

from flask import Response

from engine.contract.job import State
from functions.submit.reply import file_response
from functions.submit.route import Answer, Call, Parameter, Route, ref
from functions.submit.shown import FILES
from functions.web import problem


def artifact(call: Call, job: str, *, name: str) -> Response:
    """An artifact of a completed job."""
    found = call.find(job)
    if found.state is not State.COMPLETED:
        detail = f"job {job} is {found.state}; there is a {name} when it is COMPLETED"
        return problem(409, f"no_{name}", detail)
    made = found.outcome["artifacts"][name]
    file_name = f"{found.id}.{FILES[name].rpartition('.')[2]}"
    return file_response(call, made, name=file_name, content_type=made["content_type"])


def preview(call: Call, job: str) -> Response:
    """The newest picture of the unfinished video."""
    found = call.find(job)
    if not (shown := found.progress.get("preview")):
        return problem(409, "no_preview", f"job {job} is {found.state}, {found.stage}; it has no preview yet")
    response = file_response(call, shown, name=f"{found.id}.jpg", content_type="image/jpeg")
    response.headers["Cache-Control"] = "no-store"
    return response


_JOB = Parameter(name="job", text="the job's id", schema=ref("JobId"), place="path")
_RANGE = Parameter(name="Range", text="a part of it, such as bytes=0-1023", schema={"type": "string"}, place="header")


def _route(name: str, view: Callable[..., Response], media_type: str, text: str) -> Route:
    file: dict[str, Any] = {"media_types": (media_type,), "schema": {"type": "string", "format": "binary"}}
    return Route(
        method="GET",
        path=f"/api/v1/jobs/<job>/{name}",
        view=view,
        text=text,
        scope="read",
        group="artifacts",
        parameters=(_JOB, _RANGE),
        answers={
            200: Answer(text="the file, if the store has no addresses of its own", **file),
            206: Answer(text="the part of it that Range names", **file),
            302: Answer(text="where anybody may read it for a while", headers={"Location": "a link that expires"}),
            304: Answer(text="the reader has it (If-None-Match)"),
            409: Answer(text="there is none yet, or the job ended without", schema=ref("Problem")),
            416: Answer(text="the file has no such part", schema=ref("Problem")),
        },
    )


ROUTES = (
    _route("video", partial(artifact, name="video"), "video/mp4", "The video."),
    _route("poster", partial(artifact, name="poster"), "image/jpeg", "A picture of the video."),
    _route("preview", preview, "image/jpeg", "The newest picture of the unfinished video."),
)
