"""The accounts of a NATS server that tenants may reach: each sees its own events, and can publish nothing.

A tenant gets an account of its own, without JetStream, that imports `cinevent.<tenant>.>` from Cinevent's account. In
one account with permissions alone a tenant who may make a consumer also reads, takes or redirects what is not theirs.
Replays go through submit (GET .../events). Users are NKeys: the server's file has public keys only.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from engine.contract.errors import CineventError, Invalid, Problem
from engine.contract.job import is_tenant

SERVICE = "cinevent"
"""The name of the seed that Cinevent's own parts connect with (CINEVENT_NATS_NKEY)."""
_CONFIG = """\
# Written by `cinevent nats-config`; include it from the server's own configuration: include "accounts.conf"
accounts {{
  CINEVENT {{
    jetstream: enabled
    users: [ {{ nkey: {service} }} ]
    exports: [
{exports}
    ]
  }}
{tenants}
}}
"""
_EXPORT = '      {{ stream: "cinevent.{tenant}.>", accounts: [ {account} ] }}'
# Publishing is denied whole: an account without it still reaches $JS.API of its own account, if that ever gets one.
_TENANT = """\
  {account} {{
    users: [
      {{
        nkey: {nkey}
        permissions: {{ publish: {{ deny: ">" }}, subscribe: {{ allow: [ "cinevent.{tenant}.>" ] }} }}
      }}
    ]
    imports: [ {{ stream: {{ account: CINEVENT, subject: "cinevent.{tenant}.>" }} }} ]
  }}"""


def write_config(folder: Path, tenants: Iterable[str]) -> Path:
    """Write accounts.conf and a seed per user into `folder`; seeds that are there stay. Returns the former.

    Raises Invalid about a tenant's name, CineventError if the folder cannot be written.
    """
    names = sorted(set(tenants))
    for name in names:
        if not is_tenant(name):
            message = f"{name!r} cannot name a tenant; allowed: 1 to 32 of a-z, 0-9 and -, no reserved word"
            raise Invalid(Problem(pointer="TENANT", rule="tenant", message=message))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        users = {name: _public_key(folder / f"{name}.nk") for name in (SERVICE, *(f"tenant-{name}" for name in names))}
        target = folder / "accounts.conf"
        part = folder / ".accounts.conf.part"
        part.write_text(_config(names, users))
        part.replace(target)
    except OSError as error:
        raise CineventError(f"{folder} cannot be written: {error.strerror}") from error
    return target


def _config(tenants: list[str], users: dict[str, str]) -> str:
    accounts = {name: f"TENANT_{name.replace('-', '_').upper()}" for name in tenants}
    if len(set(accounts.values())) < len(tenants):
        raise Invalid(Problem(pointer="TENANT", rule="twice", message="two names differ in - and _ only"))
    exports = (_EXPORT.format(tenant=name, account=account) for name, account in accounts.items())
    own = (
        _TENANT.format(tenant=name, account=account, nkey=users[f"tenant-{name}"]) for name, account in accounts.items()
    )
    return _CONFIG.format(service=users[SERVICE], exports="\n".join(exports), tenants="\n".join(own))


def _public_key(path: Path) -> str:
    """The public key of the user whose seed is in this file, which is made if there is none."""
    import nkeys

    if not path.exists():
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
        # Exclusive: a file that came meanwhile is not written over.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(bytes(seed))
    try:
        public: bytes = nkeys.from_seed(bytearray(path.read_bytes().strip())).public_key
    except (nkeys.NkeysError, ValueError) as error:
        raise CineventError(f"{path} has no NKey seed; remove it, and a new one is made") from error
    return public.decode()
