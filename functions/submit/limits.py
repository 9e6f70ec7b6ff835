"""What a tenant may have at one time: submits per minute, and jobs that wait. Both are counted in the log.

The log knows for every instance of this function, over restarts; requests that come in the same moment may pass
together, so a limit may be overshot by as many.
"""

import math
from datetime import UTC, datetime

from flask import Response, after_this_request

from engine.contract.errors import TooMany
from engine.contract.rules import read_timestamp
from functions.submit.route import DEADLINE_S, Call

_WINDOW_S = 60
# A place in the queue is free when a job starts or ends, which nobody can foresee.
_RETRY_WAITING_S = 30.0


def check_limits(call: Call) -> None:
    """Raise TooMany if the caller's tenant may not submit now; say in the answer how much is left."""
    settings = call.deps.settings
    if settings.max_submits_per_minute:
        _check_rate(call, settings.max_submits_per_minute)
    if settings.max_waiting and call.counter.num_waiting(call.deps.bus, call.tenant) >= settings.max_waiting:
        message = f"{settings.max_waiting} jobs of this tenant wait already, which is the limit"
        raise TooMany(message, code="queue_full", retry_after_s=_RETRY_WAITING_S)


def _check_rate(call: Call, limit: int) -> None:
    subjects = f"cinevent.{call.tenant}.*.requested.*"
    recent = call.deps.bus.since("CINEVENT_JOBS", subjects, seconds=_WINDOW_S, deadline_s=DEADLINE_S)
    first = None if recent.first is None else read_timestamp(f"{recent.first.headers['Nats-Time-Stamp'][:19]}Z")
    # When the oldest of the minute no longer counts.
    reset_s = _WINDOW_S if first is None else max(1.0, _WINDOW_S - (datetime.now(UTC) - first).total_seconds())
    left = max(0, limit - recent.count - (0 if recent.count >= limit else 1))

    @after_this_request
    def tell(response: Response) -> Response:
        # draft-ietf-httpapi-ratelimit-headers
        response.headers["RateLimit-Policy"] = f'"submit";q={limit};w={_WINDOW_S}'
        response.headers["RateLimit"] = f'"submit";r={left};t={math.ceil(reset_s)}'
        return response

    if recent.count >= limit:
        message = f"{recent.count} requests in the last {_WINDOW_S} s; allowed: {limit}"
        raise TooMany(message, code="rate_limited", retry_after_s=reset_s)
