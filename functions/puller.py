"""Pulls one durable consumer of JetStream: keeps a hand full, and asks only for free slots.

nats-py's `fetch` is not used: asked for several messages it waits until it has them all, and what arrives after its end
it drops.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from functions.delivery import Hand

# One request stays open this long: an idle consumer costs about two a minute.
_OPEN_S = 25.0
# The server ends a request by itself; only if that word was lost does the puller give it up, this much later.
_GRACE_S = 5.0
# A reconnect loses the open request silently. This often the puller looks at the connection; that asks nobody.
_LOOK_S = 0.25
# Statuses that end every quiet request: no messages, and time is up.
_QUIET = frozenset({"404", "408"})


class Puller:
    """Fills one hand. `take` gets each message as it arrives; `repair` is awaited when the server refuses to serve."""

    def __init__(
        self,
        client: Any,
        hand: Hand,
        *,
        take: Callable[[Hand, Any], None],
        repair: Callable[[str], Awaitable[None]],
    ) -> None:
        self.hand = hand
        self._client = client
        self._take = take
        self._repair = repair
        self._inbox = client.new_inbox()
        self._subscription: Any = None
        self._changed = asyncio.Event()
        self._refusal = ""
        self._num_requests = 0
        self._num_wanted = 0
        """Messages that the open request may still bring; 0 while none is open."""
        self._ends_at = 0.0
        self._reconnects = 0

    async def run(self) -> None:
        """Pull until cancelled."""
        self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._arrived)
        while True:
            self._changed.clear()
            if self._refusal:
                await self._repair(f"{self.hand.consumer.name} {self._refusal}")
                self._refusal = ""
            elif self.hand.num_free and self._client.is_connected and not self._is_open():
                await self._ask()
            # A full hand changes only with a message of its own; everything else is worth a look at the connection.
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S if self.hand.num_free else None):
                    await self._changed.wait()

    async def close(self) -> None:
        """End the open request; `take` still gets what is on its way."""
        if self._subscription and not self._client.is_closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await self._subscription.drain()

    def release(self, sequence: int) -> None:
        """A message of the hand is done with."""
        self.hand.release(sequence)
        self._changed.set()

    def _is_open(self) -> bool:
        is_lost = time.monotonic() > self._ends_at or self._client.stats["reconnects"] != self._reconnects
        return self._num_wanted > 0 and not is_lost

    async def _ask(self) -> None:
        consumer = self.hand.consumer
        self._num_requests += 1
        self._num_wanted = self.hand.num_free
        self._ends_at = time.monotonic() + _OPEN_S + _GRACE_S
        self._reconnects = self._client.stats["reconnects"]
        await self._client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{consumer.stream}.{consumer.name}",
            json.dumps({"batch": self._num_wanted, "expires": int(_OPEN_S * 1e9)}).encode(),
            reply=f"{self._inbox}.{self._num_requests}",
        )

    async def _arrived(self, message: Any) -> None:
        if message.reply:
            self._num_wanted = max(0, self._num_wanted - 1)
            self._take(self.hand, message)
        elif message.subject == f"{self._inbox}.{self._num_requests}":
            # Without an address for acknowledgements: no message but the end of the request, and why.
            headers = message.headers or {}
            self._num_wanted = 0
            status = headers.get("Status", "")
            self._refusal = "" if status in _QUIET else f"{status} {headers.get('Description', '')}".strip()
        if not self._num_wanted:
            self._changed.set()
