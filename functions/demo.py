"""The main job end to end on this machine, as `make demo` runs it: every part is real.

Starts the whole system, sends a request as a CloudEvent over HTTP, follows it by a NATS subscription, gets the webhook,
checks its signature with the public standardwebhooks library, downloads the video, and says where the time went.
"""

import argparse
import hashlib
import http.server
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

import urllib3
from standardwebhooks import Webhook

from engine.adapters.bus import Bus
from engine.contract.codec import decode
from engine.contract.errors import CineventError
from engine.contract.events import REQUEST_TYPE, Event, job_subjects
from engine.contract.settings import Settings
from functions.client import Client
from functions.watch import watch

_INPUT = {"width": 128, "height": 96, "num_frames": 17, "steps": 20}
_READY_S = 120.0
_WEBHOOK_S = 30.0
_START_HINT = "launched to started: torchrun begins, each rank imports torch and diffusers"

Deliveries: TypeAlias = "queue.Queue[tuple[dict[str, str], bytes]]"
"""What the receiver got: headers in lower case, and the body."""


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="demo", description="One request becomes one video, through every real part.")
    parser.add_argument("prompt", nargs="?", default="a cat walks on the beach at sunset")
    parser.add_argument("--model", default="tiny-t2v")
    parser.add_argument("--data", type=Path, default=Path(".cinevent"))
    options = parser.parse_args()
    started = time.monotonic()
    try:
        with _system(options.data) as addresses, _receiver() as (hook_url, deliveries):
            ready_s = time.monotonic() - started
            print(f"The system is up after {ready_s:.1f} s: {addresses['submit']}, {addresses['nats']}\n")
            job = _send(addresses["submit"], options.model, options.prompt, hook_url)
            _run(addresses, job, deliveries, options.data / "demo")
    except CineventError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(f"\nEverything has ended; {time.monotonic() - started:.1f} s in all.")
    return 0


def _run(addresses: dict[str, Any], job: str, deliveries: Deliveries, folder: Path) -> None:
    with (
        closing(Client(addresses["submit"])) as client,
        closing(Bus.open(Settings(nats_url=addresses["nats"]), is_client=True)) as bus,
    ):
        state = watch(bus, client, job, tenant="default", as_json=False)
        if state != "COMPLETED":
            raise CineventError(f"job {job} ended as {state}; the logs are in {addresses['logs']}")
        outcome = _webhook(deliveries, addresses["webhook_secret"])
        _show_video(client, outcome, folder)
        _show_timeline(bus, job, outcome)


@contextmanager
def _system(data: Path) -> Iterator[dict[str, Any]]:
    """`cinevent local` as a child on free ports; ended by SIGTERM, which must leave nothing behind."""
    with tempfile.TemporaryDirectory() as temporary:
        ready = Path(temporary) / "ready.json"
        local = (sys.executable, "-m", "functions.cli", "local", "--port", "0", "--nats-port", "0")
        folders = ("--data", str(data / "demo"), "--models", str(data / "models"), "--ready-file", str(ready))
        process = subprocess.Popen([*local, *folders], stdout=subprocess.DEVNULL)
        try:
            yield _await_ready(process, ready)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=90)
        if code:
            raise CineventError(f"the system ended with exit code {code}")


def _await_ready(process: "subprocess.Popen[bytes]", ready: Path) -> dict[str, Any]:
    end = time.monotonic() + _READY_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > end:
            raise CineventError("the system did not start")
        time.sleep(0.02)
    addresses: dict[str, Any] = json.loads(ready.read_text())
    return addresses


@contextmanager
def _receiver() -> Iterator[tuple[str, Deliveries]]:
    """A webhook receiver, as an application developer would write one: take the bytes, answer 204."""
    deliveries: Deliveries = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            deliveries.put(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hook", deliveries
        server.shutdown()


def _send(url: str, model: str, prompt: str, hook_url: str) -> str:
    """Send the request as a CloudEvent in structured mode, as any producer would; returns the job's id."""
    event = {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "source": "/demo",
        "type": REQUEST_TYPE,
        "datacontenttype": "application/json",
        "data": {"model": model, "input": {"prompt": prompt, **_INPUT}, "webhook": {"url": hook_url}},
    }
    print(f"POST {url}/  {event['type']}  {model}  {prompt!r}")
    headers = {"Content-Type": "application/cloudevents+json", "Connection": "close"}
    answer = urllib3.request("POST", f"{url}/", body=json.dumps(event), headers=headers, retries=False, timeout=5)
    if answer.status != 202:
        raise CineventError(f"the request was refused with {answer.status}: {answer.data.decode()}")
    print(f"202  Location: {answer.headers['Location']}\n")
    return answer.headers["Location"].rsplit("/", maxsplit=1)[-1]


def _webhook(deliveries: Deliveries, secret: str) -> Event:
    """The event that the webhook brought; standardwebhooks raises on a wrong signature."""
    try:
        headers, body = deliveries.get(timeout=_WEBHOOK_S)
    except queue.Empty:
        raise CineventError(f"no webhook came within {_WEBHOOK_S:g} s") from None
    Webhook(secret).verify(body, headers)
    event = decode(headers, body)
    print(f"\nWebhook    {event.type}, signature verified by standardwebhooks, webhook-id {headers['webhook-id']}")
    return event


def _show_video(client: Client, outcome: Event, folder: Path) -> None:
    video = outcome.data["artifacts"]["video"]
    path = folder / f"{outcome.data['job']}.mp4"
    size = client.video(outcome.data["job"], path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != video["sha256"]:
        raise CineventError(f"{path} has sha256 {digest}, the event says {video['sha256']}")
    print(f"Video      {path}")
    shape = f"{video['width']} x {video['height']}, {video['num_frames']} frames, {video['fps']} fps"
    print(f"           {size} bytes, {shape}")
    print(f"           sha256 {digest}, as the event says")


def _show_timeline(bus: Bus, job: str, outcome: Event) -> None:
    filters = [job_subjects("default", job)]
    events = [decode(m.headers, m.body) for m in bus.last("CINEVENT_JOBS", filters)]
    first: datetime = events[0].time
    print("Timeline   seconds since the request was accepted")
    for event in events:
        print(f"           {(event.time - first).total_seconds():6.2f}  {event.name}")
    print(f"           {_START_HINT}")
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in outcome.data["timings"].items())
    print(f"Stages     {stages} (seconds)")


if __name__ == "__main__":
    sys.exit(main())
