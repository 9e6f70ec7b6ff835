"""NATS with accounts: credentials from a file, against a server in operator mode; an error shows no password."""

import json
import os
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nkeys
import pytest

from engine.adapters.bus import Bus
from engine.contract.errors import Unavailable
from engine.contract.settings import Settings
from tests.servers import NatsServer, free_port

COUNTED = "subs data payload imports exports conn leaf mem_storage disk_storage streams consumer"
UNLIMITED = dict.fromkeys(COUNTED.split(), -1)
CREDS = """\
-----BEGIN NATS USER JWT-----
{jwt}
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------
"""


def a_key(prefix: int) -> Any:
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), prefix))


def public(key: Any) -> str:
    return str(key.public_key.decode())


def a_token(name: str, key: Any, *, by: Any, **claims: Any) -> str:
    """A JWT of NATS: what `by` says of `key` (NATS ADR-14)."""
    body = {"jti": name, "iat": int(time.time()), "iss": public(by), "name": name, "sub": public(key), "nats": claims}
    parts = [
        urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body)
    ]
    signature = urlsafe_b64encode(by.sign(b".".join(parts))).rstrip(b"=")
    return b".".join([*parts, signature]).decode()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Settings]:
    """The settings of a user of a server that lets nobody else in."""
    operator, account, system, user = (
        a_key(prefix)
        for prefix in (
            nkeys.PREFIX_BYTE_OPERATOR,
            nkeys.PREFIX_BYTE_ACCOUNT,
            nkeys.PREFIX_BYTE_ACCOUNT,
            nkeys.PREFIX_BYTE_USER,
        )
    )
    limits = {"limits": {**UNLIMITED, "wildcards": True}}
    server = NatsServer(tmp_path)
    preload = {
        public(account): a_token("CINEVENT", account, by=operator, type="account", version=2, **limits),
        public(system): a_token("SYS", system, by=operator, type="account", version=2),
    }
    server.config.write_text(
        f"{server.config.read_text()}"
        f"operator: {a_token('O', operator, by=operator, type='operator', version=2)}\n"
        f"system_account: {public(system)}\n"
        f"resolver: MEMORY\nresolver_preload: {json.dumps(preload)}\n"
    )
    creds = tmp_path / "user.creds"
    jwt = a_token("cinevent", user, by=account, type="user", version=2, **{"subs": -1, "data": -1, "payload": -1})
    creds.write_text(CREDS.format(jwt=jwt, seed=user.seed.decode()))
    server.start()
    yield Settings(nats_url=server.url, nats_creds=str(creds))
    server.kill()


def test_a_user_with_credentials_is_let_in(guarded: Settings) -> None:
    bus = Bus.open(guarded)
    try:
        bus.bounds("CINEVENT_JOBS")
        assert bus.topology_problems() == []
    finally:
        bus.close()


def test_a_user_without_any_is_not(guarded: Settings) -> None:
    bus = Bus.open(replace(guarded, nats_creds=""))
    try:
        with pytest.raises(Unavailable):
            bus.server()
    finally:
        bus.close()


def test_an_error_shows_no_password() -> None:
    bus = Bus.open(Settings(nats_url=f"nats://user:secret@127.0.0.1:{free_port()},nats://other:secret@127.0.0.1:1"))
    try:
        with pytest.raises(Unavailable) as caught:
            bus.ping()
    finally:
        bus.close()

    assert "secret" not in str(caught.value)
    assert "127.0.0.1:1" in str(caught.value)
