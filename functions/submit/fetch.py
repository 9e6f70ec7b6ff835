"""A picture at an https address: fetched once, through the guard at the socket, and kept as an upload.

From then on the request names the upload: what the address answers later changes nothing. The picture's name is its
content's, so a repeat of the request is the same request while the address answers with the same bytes.
"""

import asyncio
import tempfile
from typing import IO, Any

import aiohttp

from engine.contract.address import Policy, refusal
from engine.contract.errors import Invalid, Problem
from engine.contract.rules import url_problems
from engine.contract.upload import UPLOAD_MAX_BYTES
from functions.guard import NotAllowed, open_session
from functions.submit import uploads
from functions.submit.follow import place
from functions.submit.limits import check_limits
from functions.submit.route import Call

_SCHEME = "https://"
# With a connection within 5 s: the caller waits for it.
_TIMEOUT = aiohttp.ClientTimeout(total=20, connect=5)
_CLOSE_S = 0.05
_PIECE_BYTES = 2**16
_POINTER = "/input/image"


def with_upload(call: Call, data: Any) -> Any:
    """The same request with an upload where it names an https address. Raises Invalid, TooMany, Unavailable."""
    given = data.get("input") if isinstance(data, dict) else None
    address = given.get("image") if isinstance(given, dict) else None
    if not isinstance(address, str) or not address.startswith(_SCHEME):
        return data
    if broken := list(url_problems(address, _POINTER)):
        raise Invalid(*broken)
    # Before anything is fetched for somebody who would be refused.
    check_limits(call)
    policy = call.deps.settings.webhook_policy()
    if why := refusal(address, policy):
        raise _refused("address", f"pictures may not come from there: {why}")
    with place(call), tempfile.TemporaryFile(prefix="cinevent-") as file:
        asyncio.run(_fetch(address, policy, file))
        try:
            name = uploads.take(call, file)
        except Invalid as error:
            raise _refused(error.problems[0].rule, f"at this address: {error.problems[0].message}") from error
    return {**data, "input": {**data["input"], "image": name}}


async def _fetch(address: str, policy: Policy, file: IO[bytes]) -> None:
    """Write what the address answers into `file`. Raises Invalid, which says nothing of what is inside our network."""
    try:
        async with (
            open_session(policy, timeout=_TIMEOUT) as session,
            session.get(address, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise _refused("fetch", f"the address answers {answer.status}; redirects are not followed")
            async for piece in answer.content.iter_chunked(_PIECE_BYTES):
                file.write(piece)
                if file.tell() > UPLOAD_MAX_BYTES:
                    raise _refused("maximum", f"the picture is larger than {UPLOAD_MAX_BYTES} bytes")
    except NotAllowed as error:
        raise _refused("address", "pictures may not come from there") from error
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        if isinstance(getattr(error, "os_error", None), NotAllowed):
            raise _refused("address", "pictures may not come from there") from error
        raise _refused("fetch", "the picture cannot be fetched from this address") from error
    finally:
        # aiohttp closes a TLS connection in the loop's next rounds, which would not come.
        await asyncio.sleep(_CLOSE_S)


def _refused(rule: str, message: str) -> Invalid:
    return Invalid(Problem(pointer=_POINTER, rule=rule, message=message))
