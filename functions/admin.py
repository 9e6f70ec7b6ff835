"""Commands for whoever runs Cinevent: API keys, and the accounts of the NATS server."""

import argparse
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from engine.contract.errors import CineventError
from engine.contract.rules import TIMESTAMP_RULE, read_timestamp
from engine.contract.settings import Settings
from functions.keys import SCOPES, Key, add_key, new_key, read_keys, revoke_key
from functions.nats_config import SERVICE, write_config

_AGE = re.compile(r"(\d{1,5})([hd])")


def add(commands: Any) -> None:
    """Add `keys` and `nats-config`."""
    keys = commands.add_parser("keys", help="API keys").add_subparsers(metavar="COMMAND", required=True)
    new = _command(keys, "new", _new, "make a key, and show it once")
    new.add_argument("tenant", help="whose jobs it is for")
    new.add_argument("--scopes", default="read,write", help=f"of {', '.join(SCOPES)} (default: read,write)")
    new.add_argument("--expires", metavar="TIME", help="90d, 12h or RFC 3339 (default: never)")
    new.add_argument("--note", default="", help="what it is for")
    _command(keys, "list", _list, "list keys, without their secrets")
    _command(keys, "revoke", _revoke, "take a key out of force").add_argument("key", help="its id, as in the list")
    config = commands.add_parser(
        "nats-config",
        help="write the accounts of a NATS server that tenants reach",
        description="Write accounts.conf and a seed per user; seeds that are there stay.",
    )
    config.set_defaults(command=_nats_config)
    config.add_argument("tenants", nargs="*", metavar="TENANT", help="who gets an account")
    config.add_argument("--out", type=Path, default=Path("nats"), metavar="DIR", help="where (default: nats)")
    config.add_argument("--json", action="store_true", help="print JSON")


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    command.set_defaults(command=run)
    command.add_argument("--file", type=Path, help="of the keys (default: CINEVENT_KEYS_FILE or keys.json)")
    command.add_argument("--json", action="store_true", help="print JSON")
    return command


def _new(options: argparse.Namespace, settings: Settings) -> int:
    expires_at = None if options.expires is None else _time(options.expires)
    scopes = [scope.strip() for scope in options.scopes.split(",")]
    key, text = new_key(tenant=options.tenant, scopes=scopes, expires_at=expires_at, note=options.note)
    add_key(_file(options, settings), key)
    _show(options, {**_public(key), "key": text}, text)
    return 0


def _list(options: argparse.Namespace, settings: Settings) -> int:
    keys = list(read_keys(_file(options, settings)).values())
    lines = [
        f"{key.id}  {key.tenant:<16}  {','.join(key.scopes):<16}  {key.expires_at or 'never expires':<20}  {key.note}"
        for key in keys
    ]
    _show(options, [_public(key) for key in keys], "\n".join(lines) or "no keys")
    return 0


def _revoke(options: argparse.Namespace, settings: Settings) -> int:
    revoke_key(_file(options, settings), options.key)
    _show(options, {"id": options.key, "revoked": True}, f"{options.key} is out of force within a second")
    return 0


def _nats_config(options: argparse.Namespace, _settings: Settings) -> int:
    path = write_config(options.out, options.tenants)
    seed = path.with_name(f"{SERVICE}.nk")
    _show(options, {"config": str(path), "seed": str(seed)}, f"{path}\nset CINEVENT_NATS_NKEY={seed} for Cinevent")
    return 0


def _file(options: argparse.Namespace, settings: Settings) -> Path:
    found: Path = options.file or Path(settings.keys_file or "keys.json")
    return found


def _public(key: Key) -> dict[str, Any]:
    names = ("id", "tenant", "scopes", "created_at", "expires_at", "note")
    return {name: getattr(key, name) for name in names}


def _time(text: str) -> datetime:
    if found := _AGE.fullmatch(text):
        return datetime.now(UTC) + timedelta(hours=int(found[1]) * {"h": 1, "d": 24}[found[2]])
    try:
        return read_timestamp(text)
    except ValueError as error:
        raise CineventError(f"--expires is {text!r}; allowed: 90d, 12h, or {TIMESTAMP_RULE}") from error


def _show(options: argparse.Namespace, value: Any, text: str) -> None:
    print(json.dumps(value, ensure_ascii=False) if options.json else text)
