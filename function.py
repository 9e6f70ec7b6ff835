"""The door for Knative's func: `new()` gives one of the three functions, chosen by CINEVENT_FUNCTION.

func-python serves ASGI; the functions are Flask apps, so hypercorn's middleware stands between. Containers and local
mode serve the same apps with gunicorn and do not need this file (docs/decisions/0001).
"""

import importlib
from collections.abc import Mapping
from typing import Any

from hypercorn.middleware import AsyncioWSGIMiddleware

from engine.contract.errors import CineventError, Invalid, Problem

FUNCTIONS = ("submit", "dispatch", "notify")
# Above Flask's own limits, an upload's among them, which answer with a problem and not with a bare 400.
_MAX_BODY_BYTES = 32 * 2**20


def new() -> "Function":
    """A function that has not started yet."""
    return Function()


class Function:
    """One Cinevent function in func-python's life cycle: start, handle, alive, ready, stop."""

    def start(self, cfg: Mapping[str, str]) -> None:
        """Build the app that CINEVENT_FUNCTION names from the environment in `cfg`. Raises Invalid for another name."""
        name = cfg.get("CINEVENT_FUNCTION", "")
        if name not in FUNCTIONS:
            message = f"is {name!r}; allowed: {', '.join(FUNCTIONS)}"
            raise Invalid(Problem(pointer="CINEVENT_FUNCTION", rule="enum", message=message))
        self._app = importlib.import_module(f"functions.{name}.app").create_app(cfg)
        self._serve = AsyncioWSGIMiddleware(self._app, max_body_size=_MAX_BODY_BYTES)

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        """One HTTP request."""
        await self._serve(scope, receive, send)

    def alive(self) -> bool:
        """The process runs; what is behind it does not matter here."""
        return True

    def ready(self) -> tuple[bool, str]:
        """Whether everything behind the function answers."""
        try:
            self._app.extensions["deps"].ping()
        except CineventError as error:
            return False, str(error)
        return True, "OK"

    def stop(self) -> None:
        """Close the function's clients."""
        self._app.extensions["deps"].close()
