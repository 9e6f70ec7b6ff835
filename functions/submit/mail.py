"""What the routes about webhooks stand on: deliveries, the directory of endpoints, allowed addresses, public keys."""

from engine.adapters.deliveries import Deliveries
from engine.contract.address import refusal
from engine.contract.endpoint import Endpoint
from engine.contract.errors import Conflict, Invalid, Problem
from engine.contract.events import Event
from engine.contract.settings import Settings
from engine.contract.signature import key_set, public_key, read_private_key
from engine.contract.text import words
from functions.directory import DISABLED, Directory


class Mail:
    """One log and one directory, for all tenants."""

    def __init__(self, settings: Settings, deliveries: Deliveries) -> None:
        """Raises Invalid about settings that cannot be used."""
        self.deliveries = deliveries
        self.directory = Directory(settings, deliveries)
        self.keys = key_set(_public_keys(settings), "CINEVENT_WEBHOOK_PUBLIC_KEYS")
        self._policy = settings.webhook_policy()

    def check(self, event: Event) -> None:
        """Refuse a `requested` event whose webhook could never be sent. Raises Invalid."""
        webhook = event.data["request"].get("webhook")
        if webhook and (why := refusal(webhook["url"], self._policy)):
            raise Invalid(Problem(pointer="/webhook/url", rule="address", message=f"webhooks may not go there: {why}"))

    def ready(self, tenant: str, name: str) -> Endpoint:
        """An endpoint that is sent to. Raises NotFound, Conflict."""
        endpoint = self.directory.find(tenant, name)
        status = self.directory.status(endpoint)
        if not endpoint.enabled or status["state"] == DISABLED:
            why = status.get("why") or "in the file"
            raise Conflict(f"the endpoint {name!r} is disabled ({why}); enable it first")
        return endpoint


def _public_keys(settings: Settings) -> list[str]:
    given = words(settings.webhook_public_keys)
    private = words(settings.webhook_signing_keys)
    return given or [public_key(read_private_key(text, "CINEVENT_WEBHOOK_SIGNING_KEYS")) for text in private]
