"""Text of settings: several values in one. Pure."""


def words(text: str) -> list[str]:
    """What stands between the commas, without spaces around it; nothing of what is empty."""
    return [word.strip() for word in text.split(",") if word.strip()]
