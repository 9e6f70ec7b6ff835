"""The parts of every installation, on one machine or many: NATS, the store, submit, weights, the webhooks' secret.

Nothing is changed but one small file that goes into the store and out again.
"""

import json
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import urllib3

from engine.adapters.bus import Bus
from engine.adapters.store import open_store
from engine.contract.errors import CineventError
from engine.contract.models import CATALOG
from engine.contract.settings import Settings
from engine.contract.signature import read_secret
from functions.doctor.finding import Finding, Verdict, Wrong, attempt, not_checked, ok, wrong

_TIMEOUT_S = 5.0
_LINK_EXPIRES_S = 60
_PROBE = b"Written by cinevent doctor; it may be deleted.\n"


def log(settings: Settings) -> Iterator[Finding]:
    """NATS with JetStream, the streams and the consumers."""
    fix = "cinevent local" if settings.launcher == "local" else "kubectl get pods -A -l app.kubernetes.io/name=nats"
    if settings.nats_creds and not Path(settings.nats_creds).is_file():
        yield wrong("nats", f"{settings.nats_creds} is no file", fix="correct CINEVENT_NATS_CREDS, or mount its Secret")
        return
    with closing(Bus.open(settings, is_client=True)) as bus:
        found = attempt("nats", bus.server, fix=f"{fix}; or set CINEVENT_NATS_URL, and CINEVENT_NATS_CREDS")
        yield found
        if found.verdict is Verdict.OK:
            yield from _topology(bus, settings)
        else:
            yield not_checked("streams", "NATS does not answer")


def _topology(bus: Bus, settings: Settings) -> Iterator[Finding]:
    # Every function makes what is missing, and changes what differs, when it starts.
    fix = f"curl {settings.public_url}/readyz (a function that starts puts it right); or correct CINEVENT_NATS_REPLICAS"
    try:
        problems = bus.topology_problems()
    except CineventError as error:
        problems = [str(error)]
    yield from (wrong("streams", problem, fix=fix) for problem in problems)
    if not problems:
        yield ok("streams", "all streams and consumers are as the code wants them")


def sync(monitor: str) -> Finding:
    """Whether the server writes to the disk before it acknowledges."""
    if not monitor:
        return not_checked("sync", "only the server's monitor knows; name it with --nats-monitor http://HOST:8222")
    fix = "set sync_interval: always in the server's jetstream block (knative/nats/values.yaml has it)"

    def look() -> str:
        config = _monitored(f"{monitor.rstrip('/')}/varz").get("jetstream", {}).get("config", {})
        if not config.get("sync_always"):
            raise Wrong("the server acknowledges writes that reach the disk up to two minutes later")
        return "every acknowledged write is on the disk"

    return attempt("sync", look, fix=fix)


def store(settings: Settings) -> Finding:
    """Write, read, hand out a link, delete."""
    fix = f"make {settings.store_url} writable for this user"
    if settings.store_url.startswith("s3:"):
        bucket = settings.store_url.removeprefix("s3://").partition("/")[0]
        endpoint = f" --endpoint-url {settings.s3_endpoint}" if settings.s3_endpoint else ""
        fix = f"aws s3 mb s3://{bucket}{endpoint}; or set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
    return attempt("store", lambda: _use_store(settings), fix=fix)


def _use_store(settings: Settings) -> str:
    used = open_store(settings)
    used.ping()
    key = f"{settings.tenant}/doctor/{uuid.uuid4().hex}.txt"
    with NamedTemporaryFile() as file:
        file.write(_PROBE)
        file.flush()
        used.put(key, Path(file.name), content_type="text/plain")
    try:
        if used.read(key) != _PROBE:
            raise Wrong("the store gives back other bytes than were put in")
        link = used.link(key, expires_s=_LINK_EXPIRES_S)
        if link and _get(link) != _PROBE:
            raise Wrong(f"the link that the store signs gives other bytes: {link}")
    finally:
        used.delete(key)
    return f"{settings.store_url}: written, read, {'linked, ' if link else ''}deleted"


def submit(settings: Settings) -> Finding:
    """Whether requests are taken."""
    fix = "cinevent local" if settings.launcher == "local" else "kubectl get ksvc -A"

    def look() -> str:
        _get(f"{settings.public_url}/readyz")
        return f"{settings.public_url} takes requests"

    return attempt("submit", look, fix=f"{fix}; or set CINEVENT_PUBLIC_URL")


def weights(settings: Settings) -> Finding:
    """What models there are, where runs are on this machine."""
    if settings.launcher != "local":
        return not_checked("weights", "they are where runs are: see the volume `models` in CINEVENT_RUN_OVERLAY")
    folder = Path(settings.models_dir)
    there = [name for name in CATALOG if (folder / name).is_dir()]
    more = f"; others come from {settings.models_url}" if settings.models_url else ""
    if there or more:
        return ok("weights", f"{folder}: {', '.join(there) or 'nothing yet'}{more}")
    fix = f"python -m engine.models.tiny {folder}; or set CINEVENT_MODELS_URL"
    return wrong("weights", f"{folder} has no model, and none can be fetched", fix=fix)


def webhooks(settings: Settings) -> Finding:
    """The secret that deliveries are signed with."""
    if not settings.webhook_secret:
        return not_checked("webhooks", "CINEVENT_WEBHOOK_SECRET is not set here; only notify needs it")

    def look() -> str:
        for text in settings.webhook_secret.split(","):
            read_secret(text.strip(), "CINEVENT_WEBHOOK_SECRET")
        return "the secret can sign"

    return attempt("webhooks", look, fix='CINEVENT_WEBHOOK_SECRET="whsec_$(openssl rand -base64 32)"')


def _monitored(url: str) -> Any:
    try:
        return json.loads(_get(url))
    except ValueError as error:
        raise Wrong(f"{url} is no monitor of NATS: {error}") from error


def _get(url: str) -> bytes:
    http = urllib3.PoolManager(retries=False, timeout=_TIMEOUT_S)
    try:
        answer = http.request("GET", url)
    except urllib3.exceptions.HTTPError as error:
        raise Wrong(f"{url} does not answer: {error}") from error
    finally:
        http.clear()
    if answer.status != 200:
        raise Wrong(f"{url} answers {answer.status}: {answer.data[:200].decode(errors='replace')}")
    return answer.data
