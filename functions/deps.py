"""What a function talks to, built from its settings: bus, history, store. Opened once, closed in reverse."""

from contextlib import ExitStack
from dataclasses import dataclass

from engine.adapters.bus import Bus
from engine.adapters.history import History
from engine.adapters.store import Store, open_store
from engine.contract.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Deps:
    """The clients of one process."""

    settings: Settings
    bus: Bus
    history: History
    store: Store
    exits: ExitStack

    def ping(self) -> None:
        """Raise Unavailable unless everything answers: readiness."""
        self.bus.ping()
        self.store.ping()

    def close(self) -> None:
        """Close what was opened, the last first."""
        self.exits.close()


def open_deps(settings: Settings) -> Deps:
    """The clients for these settings; none of them waits for its server."""
    exits = ExitStack()
    bus = Bus.open(settings)
    exits.callback(bus.close)
    return Deps(settings=settings, bus=bus, history=History(bus), store=open_store(settings), exits=exits)
