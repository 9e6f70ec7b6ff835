"""Tenants: who is let in, that nobody sees what is another's, over HTTP and over NATS."""

import asyncio
import http.server
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import nats
import nats.errors
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from flask.testing import FlaskClient
from jwt.algorithms import RSAAlgorithm

from engine.adapters.bus import Bus
from engine.contract.settings import Settings
from functions.cli import main as cinevent
from functions.keys import add_key, new_key
from functions.nats_config import write_config
from functions.submit.app import ROUTES
from tests.e2e.door import GENERATE, Door, a_door
from tests.make import a_body, an_event
from tests.servers import NatsServer, wait_until


def a_key(path: Path, tenant: str, *scopes: str) -> dict[str, str]:
    """Headers with a new key."""
    key, text = new_key(tenant=tenant, scopes=scopes or ("read", "write"), expires_at=None, note="")
    add_key(path, key)
    return {"Authorization": f"Bearer {text}"}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def a_gated(door: Door, keys: Path) -> FlaskClient:
    return a_door(door.deps.bus, door.deps.settings, keys_file=str(keys)).http


def test_without_a_key_nobody_is_let_in(door: Door, keys: Path) -> None:
    good = a_key(keys, "acme")
    http = a_gated(door, keys)

    answers = [
        http.get("/api/v1/jobs", headers=headers)
        for headers in (
            {},
            {"Authorization": "Bearer x"},
            {"Authorization": "Basic x"},
            {"Authorization": "Bearer cvk_a_b"},
        )
    ]

    assert [(answer.status_code, answer.json["code"]) for answer in answers] == [(401, "unauthorized")] * 4
    assert answers[0].headers["WWW-Authenticate"].startswith("Bearer")
    assert http.get("/api/v1/jobs", headers=good).status_code == 200
    assert http.get("/healthz").status_code == 200


def test_every_route_but_the_documents_wants_a_key(door: Door, keys: Path) -> None:
    a_key(keys, "acme")
    http = a_gated(door, keys)
    filled = [(each.method, each.path.replace("<", "").replace(">", "")) for each in ROUTES if each.scope]

    assert {http.open(path, method=method).status_code for method, path in filled} == {401}


def test_a_key_may_do_what_its_scopes_say(door: Door, keys: Path) -> None:
    reader, writer, admin = (a_key(keys, "acme", scope) for scope in ("read", "write", "admin"))
    http = a_gated(door, keys)

    def statuses(headers: dict[str, str]) -> tuple[int, int]:
        post = http.post(GENERATE, json=a_body(), headers=headers)
        return http.get("/api/v1/jobs", headers=headers).status_code, post.status_code

    assert (statuses(reader), statuses(writer), statuses(admin)) == ((200, 403), (403, 202), (200, 202))


def test_what_is_another_tenants_is_not_there(door: Door, keys: Path) -> None:
    """The tenant is the credential's: the same idempotency key of two tenants is two jobs."""
    names = (f"{door.tenant}-a", f"{door.tenant}-b")
    mine, theirs = (a_key(keys, name) for name in names)
    http = a_gated(door, keys)
    jobs = [
        http.post(GENERATE, json=a_body(), headers={**headers, "Idempotency-Key": "k"}).json["id"]
        for headers in (mine, theirs)
    ]

    foreign = [
        http.open(route.path.replace("<job>", jobs[1]).replace("<video>", jobs[1]), method=route.method, headers=mine)
        for route in ROUTES
        if "<job>" in route.path or "<video>" in route.path
    ]

    assert jobs[0] != jobs[1]
    assert {answer.status_code for answer in foreign} == {404}
    assert [job["id"] for job in http.get("/api/v1/jobs", headers=mine).json["jobs"]] == [jobs[0]]
    assert http.get(f"/api/v1/jobs/{jobs[1]}", headers=theirs).json["state"] == "PENDING"


class Issuer:
    """An OpenID provider: it publishes its keys, and counts how often it is asked."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.asked = 0
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked += "keys" in self.path
                body = json.dumps(issuer.answer(self.path)).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def answer(self, path: str) -> Any:
        if path.endswith("openid-configuration"):
            return {"jwks_uri": f"{self.url}/keys"}
        return {"keys": [{**json.loads(RSAAlgorithm.to_jwk(self.key.public_key())), "kid": "1", "use": "sig"}]}

    def token(self, *, kid: str = "1", key: Any = None, algorithm: str = "RS256", **over: Any) -> dict[str, str]:
        claims = {"iss": self.url, "aud": "cinevent", "exp": time.time() + 60, "tenant": "acme", "sub": "me", **over}
        claims = {name: value for name, value in claims.items() if value is not None}
        text = jwt.encode(claims, self.key if key is None else key, algorithm=algorithm, headers={"kid": kid})
        return {"Authorization": f"Bearer {text}"}


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_token_of_the_issuer_names_tenant_and_scopes(door: Door, issuer: Issuer) -> None:
    http = a_door(door.deps.bus, door.deps.settings, oidc_issuer=issuer.url).http
    plain, reader = issuer.token(tenant=f"{door.tenant}-a"), issuer.token(scope="openid cinevent:read")

    job = http.post(GENERATE, json=a_body(), headers=plain)

    assert job.status_code == 202
    assert door.deps.history.get(f"{door.tenant}-a", job.json["id"])
    assert http.get("/api/v1/jobs", headers=reader).status_code == 200
    assert http.post(GENERATE, json=a_body(), headers=reader).status_code == 403


def test_any_other_token_is_refused_and_the_issuer_is_left_in_peace(door: Door, issuer: Issuer) -> None:
    http = a_door(door.deps.bus, door.deps.settings, oidc_issuer=issuer.url).http
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    before = issuer.asked
    bad = [
        issuer.token(exp=time.time() - 60),
        issuer.token(exp=None),
        issuer.token(aud="another"),
        issuer.token(iss="https://evil.example.com"),
        issuer.token(tenant=None),
        issuer.token(tenant="dead"),
        issuer.token(tenant=["acme"]),
        issuer.token(key=other),
        issuer.token(key="a secret that is long enough for it", algorithm="HS256"),
        issuer.token(key="", algorithm="none"),
        *(issuer.token(kid=f"unknown {number}") for number in range(5)),
        {"Authorization": "Bearer a.b.c"},
    ]

    assert {http.get("/api/v1/jobs", headers=headers).status_code for headers in bad} == {401}
    assert issuer.asked - before == 1


def test_an_issuer_that_is_away_is_a_503(door: Door, issuer: Issuer) -> None:
    http = a_door(door.deps.bus, door.deps.settings, oidc_issuer="http://127.0.0.1:1").http

    answer = http.get("/api/v1/jobs", headers=issuer.token())

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code and output of a command, in this process: these commands start nothing."""
    code = cinevent(arguments)
    return code, *capsys.readouterr()


def test_keys_are_made_listed_and_revoked_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ("--file", str(tmp_path / "keys.json"), "--json")
    _, made, _ = run(capsys, "keys", "new", "acme", "--scopes", "read", "--expires", "90d", *file)
    bad = run(capsys, "keys", "new", "acme", "--scopes", "fly", *file)
    late = run(capsys, "keys", "new", "acme", "--expires", "soon", *file)
    _, listed, _ = run(capsys, "keys", "list", *file)
    key = json.loads(made)
    revoked, _, _ = run(capsys, "keys", "revoke", key["id"], *file)

    assert key["key"].startswith(f"cvk_{key['id']}_")
    assert [(found["tenant"], found["scopes"]) for found in json.loads(listed)] == [("acme", ["read"])]
    assert key["key"] not in listed
    assert [(code, len(error.splitlines())) for code, _, error in (bad, late)] == [(1, 1), (1, 1)]
    assert revoked == 0
    assert json.loads(run(capsys, "keys", "list", *file)[1]) == []


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NatsServer, Path]]:
    """A server with an account each for acme and bob, with an event of both in the log."""
    folder = tmp_path_factory.mktemp("accounts")
    config = write_config(folder / "users", ["acme", "bob"])
    server = NatsServer(folder, more=f'include "{config.relative_to(folder)}"')
    server.start()
    bus = Bus.open(Settings(nats_url=server.url, nats_nkey=str(folder / "users" / "cinevent.nk")))
    for tenant in ("acme", "bob"):
        bus.publish(an_event("requested", tenant=tenant))
    yield server, folder / "users"
    bus.close()
    server.kill()


def as_tenant(accounts: tuple[NatsServer, Path], name: str, act: Callable[[Any, list[str]], Awaitable[Any]]) -> Any:
    """What `act` does with a tenant's connection; it gets what the server complains of, too."""
    server, users = accounts

    async def run() -> Any:
        errors: list[str] = []

        async def complain(error: Exception) -> None:
            errors.append(str(error))

        connection = await nats.connect(server.url, nkeys_seed=str(users / f"{name}.nk"), error_cb=complain)
        try:
            return await act(connection, errors)
        finally:
            await connection.close()

    return asyncio.run(run())


def service(accounts: tuple[NatsServer, Path]) -> Bus:
    server, users = accounts
    return Bus.open(Settings(nats_url=server.url, nats_nkey=str(users / "cinevent.nk")), is_client=True)


def test_a_tenant_hears_its_own_events_and_no_others(accounts: tuple[NatsServer, Path]) -> None:
    bus = service(accounts)

    async def listen(connection: Any, errors: list[str]) -> list[str]:
        own = await connection.subscribe("cinevent.acme.>")
        all_of_them = await connection.subscribe("cinevent.>")
        foreign = await connection.subscribe("cinevent.bob.>")
        await connection.flush()
        for tenant in ("bob", "acme"):
            await asyncio.to_thread(bus.publish, an_event("started", tenant=tenant))
        heard = [(await own.next_msg(5)).subject]
        await connection.flush()
        return [*heard, *(f"leak {s.subject}" for s in (all_of_them, foreign) if s.pending_msgs)]

    heard = as_tenant(accounts, "tenant-acme", listen)
    bus.close()

    assert [subject.rpartition(".")[2] for subject in heard] == ["started"]


# In one account with permissions, each of these lets a tenant out (they are what JetStream's own calls need).
ESCAPES = {
    "take from a consumer of ours": ("$JS.API.CONSUMER.MSG.NEXT.CINEVENT_JOBS.dispatch-normal", "1"),
    "have events of others delivered": (
        "$JS.API.CONSUMER.CREATE.CINEVENT_JOBS.x",
        json.dumps(
            {
                "stream_name": "CINEVENT_JOBS",
                "config": {"name": "x", "deliver_subject": "cinevent.acme.x", "filter_subject": "cinevent.bob.>"},
            }
        ),
    ),
    "delete a consumer of ours": ("$JS.API.CONSUMER.DELETE.CINEVENT_JOBS.dispatch-normal", ""),
    "read the log": ("$JS.API.DIRECT.GET.CINEVENT_JOBS", '{"multi_last": ["cinevent.bob.>"]}'),
    "say an event of its own": ("cinevent.acme.x.done.completed", "{}"),
    "say an event of another": ("cinevent.bob.x.done.completed", "{}"),
}


@pytest.mark.parametrize(("subject", "body"), ESCAPES.values(), ids=ESCAPES)
def test_a_tenant_cannot(accounts: tuple[NatsServer, Path], subject: str, body: str) -> None:
    async def escape(connection: Any, errors: list[str]) -> tuple[int, list[str]]:
        heard = await connection.subscribe("cinevent.acme.>")
        await connection.publish(subject, body.encode(), reply="cinevent.acme.answer")
        await connection.flush()
        await asyncio.to_thread(wait_until, lambda: errors, what="the server refuses")
        return heard.pending_msgs, errors

    num_heard, errors = as_tenant(accounts, "tenant-acme", escape)

    bus = service(accounts)
    waiting = bus.since("CINEVENT_JOBS", "cinevent.*.*.requested.normal").count
    strange = [found for found in bus.subjects("CINEVENT_JOBS", "cinevent.>") if ".x." in found]
    bus.close()
    assert (num_heard, strange) == (0, [])
    assert "permissions violation" in errors[0].lower()
    assert waiting == 2


def test_seeds_stay_when_a_tenant_is_added_and_are_for_their_owner_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path, ["acme"])
    before = (tmp_path / "tenant-acme.nk").read_bytes()

    code, out, _ = run(capsys, "nats-config", "acme", "bob", "--out", str(tmp_path), "--json")

    config = (tmp_path / "accounts.conf").read_text()
    assert (code, json.loads(out)["config"]) == (0, str(tmp_path / "accounts.conf"))
    assert (tmp_path / "tenant-acme.nk").read_bytes() == before
    assert (tmp_path / "tenant-acme.nk").stat().st_mode & 0o077 == 0
    assert "cinevent.bob.>" in config
    assert before.decode() not in config


def test_a_bad_tenant_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys, "nats-config", "a.b", "--out", str(tmp_path))

    assert (code, "'a.b'" in error, len(error.splitlines())) == (1, True, 1)
