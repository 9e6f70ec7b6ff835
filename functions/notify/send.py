"""One POST of one delivery, and the question before the first: signed, guarded, with an end to everything.

What an answer means is contract/delivery.py's; whether now is the time to send is lane.py's.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import aiohttp

from engine.contract.address import Policy, refusal
from engine.contract.delivery import RETRY_AFTER_MAX_S, Delivery, Said
from engine.contract.endpoint import Endpoint
from engine.contract.signature import sign
from functions.delivery import retry_after_s
from functions.guard import NotAllowed

_CONNECT_S = 5.0
# Nothing in an answer is used but to show it; what comes later than this after the status is not waited for.
_ANSWER_MAX_BYTES = 4096
_ANSWER_S = 2.0
_SHOWN_CHARACTERS = 500
_NO_KEY = "nothing is sent unsigned: set CINEVENT_WEBHOOK_SECRET, to whsec_ and the base64 of 24 to 64 bytes"


class Sender:
    """Sends over one session; to be used inside its event loop."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        policy: Policy,
        signing_keys: Sequence[Any],
        origin: str,
        timeout_s: float,
    ) -> None:
        self._session = session
        self._policy = policy
        self._signing_keys = tuple(signing_keys)
        self._origin = origin
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, connect=min(_CONNECT_S, timeout_s))

    async def send(self, delivery: Delivery, endpoint: Endpoint) -> Said:
        """POST it once; whatever happens is in what comes back."""
        keys = (*endpoint.keys, *self._signing_keys)
        if not keys:
            return Said(error=_NO_KEY)
        body = delivery.body.encode()
        headers = {
            **endpoint.headers,
            **delivery.headers,
            **sign(body, webhook_id=delivery.event_id, timestamp=int(time.time()), keys=keys),
            "user-agent": f"cinevent/{_version()}",
            "webhook-attempt": str(delivery.number),
            "webhook-request-origin": self._origin,
        }
        return (await self._exchange("POST", endpoint.url, headers=headers, body=body))[0]

    async def ask(self, endpoint: Endpoint) -> tuple[str, int]:
        """CloudEvents' handshake: why the endpoint may not be sent to, else "", and the rate that it allows, 0 for any.

        The status does not count; the origin has to be ours, letter by letter, or `*`.
        """
        headers = {"webhook-request-origin": self._origin, "user-agent": f"cinevent/{_version()}"}
        if endpoint.rate_per_minute:
            headers["webhook-request-rate"] = str(endpoint.rate_per_minute)
        said, answered = await self._exchange("OPTIONS", endpoint.url, headers=headers, body=None)
        if not said.status:
            return f"the endpoint could not be asked for its consent: {said.error}", 0
        allowed = answered.get("webhook-allowed-origin", "")
        if allowed not in ("*", self._origin):
            return f"the endpoint does not consent: WebHook-Allowed-Origin is {allowed!r}, not {self._origin!r}", 0
        rate = answered.get("webhook-allowed-rate", "*")
        return "", int(rate) if rate.isascii() and rate.isdecimal() else 0

    async def _exchange(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[Said, Mapping[str, str]]:
        if why := refusal(url, self._policy):
            return Said(error=f"address not allowed: {why}"), {}
        begun = time.monotonic()
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False, timeout=self._timeout
            ) as response:
                said = Said(
                    status=response.status,
                    retry_after_s=retry_after_s(response.headers.get("Retry-After"), max_s=RETRY_AFTER_MAX_S),
                    answer=await _head(response),
                    ms=_ms(begun),
                )
                return said, {name.lower(): value for name, value in response.headers.items()}
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            return Said(error=_reason(error, self._timeout.total), ms=_ms(begun)), {}


async def _head(response: aiohttp.ClientResponse) -> str:
    """The first bytes of an answer; the connection of one that goes on is closed."""
    got = b""
    try:
        async with asyncio.timeout(_ANSWER_S):
            while len(got) < _ANSWER_MAX_BYTES and not response.content.at_eof():
                got += await response.content.read(_ANSWER_MAX_BYTES - len(got))
    except (aiohttp.ClientError, TimeoutError, OSError):
        # The status counts, whatever becomes of the body.
        pass
    if not response.content.at_eof():
        response.close()
    return got.decode(errors="replace")[:_SHOWN_CHARACTERS]


def _reason(error: BaseException, timeout_s: float | None) -> str:
    """What went wrong, in one line that tells a user nothing about our network."""
    causes = [error]
    while cause := (causes[-1].__cause__ or causes[-1].__context__):
        causes.append(cause)
    if any(isinstance(cause, NotAllowed) for cause in causes):
        return "address not allowed: it leads to a network that webhooks may not reach"
    if isinstance(error, TimeoutError):
        return f"time-out: no answer within {timeout_s:g} s"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _ms(begun: float) -> int:
    return round((time.monotonic() - begun) * 1000)


@cache
def _version() -> str:
    return version("function")
