"""An upload: a picture that a request may start from. Its name, its limits, how its type is known. Pure.

Whether it can be decoded is the engine's to find out: that takes libraries which a function has no time to load.
"""

NAME_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"
NAME_MAX_CHARACTERS = 128
# A photo of 50 megapixels as a fine JPEG; the store, the door and the engine's memory are all sized by it.
UPLOAD_MAX_BYTES = 20 * 2**20
# 150 MB in memory as RGB; a file of a few kilobytes can ask for thousands of times as much.
UPLOAD_MAX_PIXELS = 50_000_000

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
"""The types that are taken, and how a file of each is called."""


def type_of(head: bytes) -> str | None:
    """The type of a picture by its first 12 bytes; None for anything that is not taken."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return None
