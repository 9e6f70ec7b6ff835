"""Deliveries and endpoints as users see them: over HTTP at submit, and with `cinevent webhooks`."""

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import urllib3
from werkzeug.serving import make_server

from engine.adapters.bus import Bus
from engine.contract.delivery import event_bytes
from engine.contract.settings import Settings
from engine.contract.signature import read_private_key, read_secret, sign
from functions.cli import main
from functions.deps import open_deps
from functions.submit.app import make
from tests.e2e.hooks import (
    OTHER_SECRET,
    SECRET,
    SIGNING_KEY,
    accept,
    accept_quietly,
    ended,
    endpoints_file,
    hook_settings,
    is_idle,
    notify_system,
    records,
)
from tests.make import a_body, an_event
from tests.servers import Sink, accepts, child, free_port, wait_until

WEBHOOKS = Path(__file__).parents[2] / "docs" / "webhooks.md"


@dataclass
class Api:
    """submit, with notify behind the log; two standing endpoints at `sink`: shop-0 and shop-1."""

    url: str
    settings: Settings
    bus: Bus
    sink: Sink

    def call(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        answer = urllib3.request(method, f"{self.url}{path}", retries=False, **more)
        return answer.status, answer.json()

    def failed(self, number: int) -> str:
        """A job whose deliveries to both endpoints were given up."""
        job = accept_quietly(self.bus, number)
        self.sink.answer = lambda _: (500, {})
        self.bus.publish(ended(job))
        wait_until(lambda: [r.data["state"] for r in records(self.bus, job)].count("failed") == 2)
        wait_until(lambda: is_idle(self.settings))
        self.sink.answer = lambda _: (204, {})
        self.sink.received.clear()
        return job


@pytest.fixture
def api(bus: Bus, sink: Sink, settings: Settings, tmp_path: Path) -> Iterator[Api]:
    file = endpoints_file(tmp_path / "endpoints.yaml", {"url": f"{sink.url}a"}, {"url": f"{sink.url}b"})
    settings = hook_settings(
        settings, webhook_endpoints=file, webhook_time_scale=1e-9, webhook_signing_keys=SIGNING_KEY
    )
    deps = open_deps(settings)
    server = make_server("127.0.0.1", 0, make(deps), threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    with notify_system(settings):
        yield Api(url=f"http://127.0.0.1:{server.server_port}", settings=settings, bus=bus, sink=sink)
    server.shutdown()
    thread.join()
    server.server_close()
    deps.close()


def test_a_failed_delivery_is_shown_found_and_replayed_under_the_same_id(api: Api) -> None:
    job = api.failed(1)

    _, of_job = api.call("GET", f"/api/v1/jobs/{job}/deliveries")
    _, failed = api.call("GET", "/api/v1/deliveries?state=failed&endpoint=shop-1")
    (delivery,) = failed["deliveries"]
    _, shown = api.call("GET", f"/api/v1/deliveries/{delivery['id']}")
    replayed = api.call("POST", f"/api/v1/deliveries/{delivery['id']}/replay")
    wait_until(lambda: api.call("GET", f"/api/v1/deliveries/{delivery['id']}")[1]["state"] == "delivered")

    assert {each["endpoint"] for each in of_job["deliveries"]} == {"shop-0", "shop-1"}
    assert [attempt["number"] for attempt in shown["attempts"]] == list(range(1, 13))
    assert (shown["attempts"][0]["status"], shown["attempts"][0]["state"]) == (500, "waiting")
    assert replayed == (202, {"delivery": delivery["id"]})
    (got,) = api.sink.received
    assert (got.path, got.headers["webhook-id"]) == ("/b", ended(job).id)


def test_pages_lead_through_all_deliveries_once_the_newest_first(api: Api) -> None:
    jobs = [accept_quietly(api.bus, number) for number in range(3)]
    for number, job in enumerate(jobs):
        api.bus.publish(ended(job))
        wait_until(lambda n=number: len(api.sink.received) == 2 * (n + 1))
    wait_until(lambda: is_idle(api.settings))
    wait_until(lambda: all(len(records(api.bus, job)) == 2 for job in jobs))

    found, cursor = [], ""
    while cursor is not None:
        _, page = api.call("GET", f"/api/v1/deliveries?limit=4{cursor and f'&cursor={cursor}'}")
        found += page["deliveries"]
        cursor = page["next_cursor"]

    assert [each["job"] for each in found] == [job for job in reversed(jobs) for _ in range(2)]
    assert len({each["id"] for each in found}) == 6


def test_an_endpoint_is_recovered_tested_and_enabled_from_the_command_line(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [api.failed(number) for number in range(2)]
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()

    assert cinevent(api, "recover", "shop-0", "--since", since) == 0
    wait_until(lambda: len(api.sink.received) == 2)
    assert "2 deliveries are sent again" in capsys.readouterr().out
    assert {got.headers["webhook-id"] for got in api.sink.received} == {ended(job).id for job in jobs}

    api.sink.answer = lambda got: (410 if got.path == "/a" else 204, {})
    assert cinevent(api, "test", "shop-0", "--json") == 0
    delivery = json.loads(capsys.readouterr().out)["delivery"]
    wait_until(lambda: state_of(api, "shop-0") == "disabled", timeout_s=15)
    assert json.loads(api.sink.received[-1].body)["type"] == "io.cinevent.webhook.test.v1"

    assert cinevent(api, "test", "shop-0") == 1
    assert "enable it first" in capsys.readouterr().err
    assert cinevent(api, "enable", "shop-0") == 0
    assert state_of(api, "shop-0") == "healthy"
    for command in (["endpoints"], ["list", "--state", "failed"], ["job", jobs[0]], ["show", delivery]):
        assert cinevent(api, *command) == 0
        assert "shop-0" in capsys.readouterr().out


def cinevent(api: Api, *arguments: str) -> int:
    return main(["webhooks", *arguments, "--url", api.url])


def state_of(api: Api, name: str) -> str:
    _, found = api.call("GET", "/api/v1/endpoints")
    return str(next(each["status"]["state"] for each in found["endpoints"] if each["name"] == name))


def test_wrong_questions_are_answered_with_what_is_allowed(api: Api) -> None:
    cases = {
        ("GET", "/api/v1/deliveries?state=lost"): 422,
        ("GET", "/api/v1/deliveries?endpoint=*.>"): 422,
        ("GET", "/api/v1/deliveries?limit=0"): 422,
        ("GET", "/api/v1/deliveries/d*"): 404,
        ("GET", "/api/v1/deliveries/" + "d" + "a" * 25): 404,
        ("POST", "/api/v1/deliveries/" + "d" + "a" * 25 + "/replay"): 404,
        ("GET", "/api/v1/jobs/>/deliveries"): 404,
        ("POST", "/api/v1/endpoints/nobody/test"): 404,
        ("POST", "/api/v1/endpoints/nobody/enable"): 404,
        ("POST", "/api/v1/endpoints/shop-0/recover"): 422,
    }

    answers = {case: api.call(*case) for case in cases}

    assert {case: status for case, (status, _) in answers.items()} == cases
    assert all(body["detail"] for _, body in answers.values())


def test_no_secret_is_ever_shown_and_the_public_key_is(api: Api) -> None:
    _, endpoints = api.call("GET", "/api/v1/endpoints")
    _, keys = api.call("GET", "/.well-known/webhook-keys.json")

    assert SECRET not in json.dumps(endpoints)
    (key,) = keys["keys"]
    assert (key["kty"], key["crv"], key["alg"]) == ("OKP", "Ed25519", "EdDSA")
    assert "d" not in key


def test_a_request_whose_webhook_could_never_be_sent_is_refused(api: Api) -> None:
    urls = ("http://169.254.169.254/latest", "http://submit.cinevent.svc/", "https://a.b:22/")

    answers = [api.call("POST", "/api/v1/generate", json=a_body(webhook={"url": url})) for url in urls]

    assert [(status, body["errors"][0]["pointer"]) for status, body in answers] == [(422, "/webhook/url")] * 3


def test_a_file_of_endpoints_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{SECRET}\n")
    good = endpoints_file(tmp_path / "good.yaml", {"url": "https://example.com/", "secrets": [f"file:{secret}"]})
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "endpoints:\n"
        "  - {name: shop, url: 'http://10.0.0.1/', secrets: [whsec_short]}\n"
        "  - {name: url-x, url: 'ftp://x', secrets: ['file:/none']}\n"
    )

    assert main(["webhooks", "check", good]) == 0
    assert "shop-0" in capsys.readouterr().out
    assert main(["webhooks", "check", str(bad)]) == 1
    said = capsys.readouterr().err
    for pointer in ("/endpoints/0/secrets/0", "/endpoints/1/name", "/endpoints/1/url", "/endpoints/1/secrets/0"):
        assert pointer in said
    assert "whsec_short" not in said


def test_an_event_of_a_job_of_before_is_not_sent_twice_to_a_request_s_own_address(api: Api) -> None:
    job = accept(api.bus, f"{api.sink.url}own")
    api.bus.publish(ended(job))
    wait_until(lambda: len(records(api.bus, job)) == 3)

    _, found = api.call("GET", f"/api/v1/jobs/{job}/deliveries")
    own = next(each for each in found["deliveries"] if each["url"])
    status, _ = api.call("POST", f"/api/v1/deliveries/{own['id']}/replay")
    wait_until(lambda: len(records(api.bus, job)) == 4)

    assert status == 202
    assert [got.path for got in api.sink.received].count("/own") == 2


def test_the_recipe_for_receivers_takes_an_event_once_and_nothing_forged(tmp_path: Path) -> None:
    found = re.search(r"<!-- test: recipe -->\n```python\n(.*?)```", WEBHOOKS.read_text(), re.DOTALL)
    assert found
    port = free_port()
    program = found[1].replace("port=9000", f"port={port}").replace('"seen.db"', repr(str(tmp_path / "seen.db")))
    body = event_bytes(an_event("completed"), form="structured")[1]

    def post(secret: str, *, age_s: int = 0, of: bytes = body) -> int:
        keys = [read_secret(secret, ""), read_private_key(SIGNING_KEY, "")]
        headers = sign(body, webhook_id="id-1", timestamp=int(time.time()) - age_s, keys=keys)
        return urllib3.request("POST", f"http://127.0.0.1:{port}/hook", body=of, headers=headers, retries=False).status

    env = {"WEBHOOK_SECRETS": f"{SECRET},{OTHER_SECRET}"}
    with child([sys.executable, "-c", program], env=env, log=tmp_path / "receiver") as receiver:
        wait_until(lambda: accepts(port), what="the receiver listens")
        assert [post(SECRET), post(OTHER_SECRET), post(SECRET)] == [204, 204, 204]
        assert post("whsec_" + "A" * 32) == 401
        assert post(SECRET, of=body.replace(b"completed", b"cancelled")) == 401
        assert post(SECRET, age_s=1000) == 400

    assert receiver.log.read_text().count("io.cinevent.job.completed.v1") == 1
