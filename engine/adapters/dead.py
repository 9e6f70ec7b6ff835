"""Dead letters: messages that a consumer could not be given, with the reason. List, read, and send again."""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.adapters.bus import Bus, Message
from engine.adapters.history import REDRIVE_HEADER
from engine.contract.errors import NotFound

STREAM = "CINEVENT_DEAD"
REASON_HEADER = "Cinevent-Dead-Reason"
TRIES_HEADER = "Cinevent-Dead-Tries"
SUBJECT_HEADER = "Cinevent-Dead-Subject"
CONSUMER_HEADER = "Cinevent-Dead-Consumer"


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """One message that was given up; `sequence` names it."""

    sequence: int
    consumer: str
    reason: str
    tries: int
    subject: str
    """Where it was published first."""
    at: str
    body: bytes


def dead_letters(bus: Bus, *, limit: int) -> Iterator[DeadLetter]:
    """The dead letters, the oldest first."""
    for message in bus.read(STREAM, matching="cinevent.dead.>", limit=limit):
        yield _letter(message)


def dead_letter(bus: Bus, sequence: int) -> DeadLetter:
    """One dead letter. Raises NotFound."""
    return _letter(_find(bus, sequence))


def redrive(bus: Bus, sequence: int) -> str:
    """Publish a dead letter again, for the consumer that gave it up, and remove it; returns that consumer's name.

    Others skip it by its header. A crash between the two steps sends it twice, as any delivery may be. Raises NotFound.
    """
    message = _find(bus, sequence)
    letter = _letter(message)
    kept = {name: value for name, value in message.headers.items() if not name.startswith(("Nats-", "Cinevent-Dead-"))}
    bus.publish_bytes(letter.subject, {**kept, REDRIVE_HEADER: letter.consumer}, letter.body)
    bus.delete(STREAM, sequence)
    return letter.consumer


def _find(bus: Bus, sequence: int) -> Message:
    found = bus.read(STREAM, matching="cinevent.dead.>", after=sequence - 1, limit=1)
    if not found or found[0].sequence != sequence:
        raise NotFound(f"there is no dead letter {sequence}")
    return found[0]


def _letter(message: Message) -> DeadLetter:
    headers = message.headers
    return DeadLetter(
        sequence=message.sequence,
        consumer=headers[CONSUMER_HEADER],
        reason=headers[REASON_HEADER],
        tries=int(headers[TRIES_HEADER]),
        subject=headers[SUBJECT_HEADER],
        at=headers["Nats-Time-Stamp"],
        body=message.body,
    )
