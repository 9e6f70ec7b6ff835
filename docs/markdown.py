"""The two pieces of Markdown that generated pages are made of."""

import json
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells may hold any text."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(value: object) -> str:
    """A block with a value as JSON."""
    return f"```json\n{json.dumps(value, indent=2, ensure_ascii=False)}\n```"
