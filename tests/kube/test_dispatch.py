"""dispatch over a real log and an API server: every way in which a run can wait or end has its outcome in the log."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from engine.adapters.bus import Bus
from engine.contract.artifact import encode
from engine.contract.codec import encode_binary
from engine.contract.events import Event
from engine.contract.job import Job, State, artifact_key, derived_id, run_name
from engine.contract.settings import Settings
from functions.deps import Deps, open_deps
from functions.dispatch.app import make
from functions.dispatch.launchers import cluster
from functions.dispatch.launchers.cluster import KINDS, ClusterLauncher
from functions.dispatch.launchers.kube import Kube
from tests.kube.operator import Operator
from tests.kube_api import Call, KubeApi, Refused
from tests.make import JOB, TENANT, a_manifest, a_plan, a_request, an_event
from tests.servers import wait_until

RUN, NEXT = run_name(JOB, 1), run_name(JOB, 2)
OTHER = derived_id(TENANT, "test", "other")
KIND = KINDS["pytorchjob"]


class Dispatch:
    """dispatch before an API server, and the log that it reads and writes."""

    def __init__(self, settings: Settings, kube: Kube) -> None:
        settings = replace(settings, launcher="pytorchjob", engine_image="engine:1", num_nodes=2, check_interval_s=0.2)
        self.deps: Deps = open_deps(settings)
        self.launcher = ClusterLauncher(kube, KIND, settings=settings)
        self.http: FlaskClient = make(self.deps, self.launcher, environ={}).test_client()
        self.operator = Operator(kube, KIND)

    def tell(self, event: Event) -> TestResponse:
        """The answer to an event as a source would POST it."""
        headers, body = encode_binary(event)
        return self.http.post("/", data=body, headers=headers)

    def ask(self, job: str = JOB, tenant: str = TENANT, **over: object) -> TestResponse:
        """Put a request into the log and tell dispatch; returns its answer."""
        asked = a_request(**over).to_json()
        event = an_event("requested", time=datetime.now(UTC), job=job, tenant=tenant, request=asked)
        self.deps.bus.publish(event)
        return self.tell(event)

    def look(self, job: str = JOB) -> Job:
        """Ring the job's alarm; returns the job afterwards."""
        assert self.tell(an_event("check", job=job)).status_code == 204
        return self.deps.history.get(TENANT, job)

    def hint(self, item: dict[str, Any], kind: str = "resource.update") -> int:
        """What an ApiServerSource says of an object."""
        event = Event(
            id="u1", source="https://10.0.0.1", type=f"dev.knative.apiserver.{kind}", time=datetime.now(UTC), data=item
        )
        return self.tell(event).status_code


@pytest.fixture(autouse=True)
def lists_are_never_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look sees what a test did just before it; sharing has its own tests."""
    monkeypatch.setattr(cluster, "_LOOK_AGE_S", 0.0)
    monkeypatch.setattr(cluster, "_FRESH_S", 0.0)


@pytest.fixture
def dispatch(settings: Settings, kube: Kube) -> Iterator[Dispatch]:
    made = Dispatch(settings, kube)
    yield made
    made.deps.close()


def started(dispatch: Dispatch, **over: object) -> list[str]:
    """A job whose run is up and has said so; returns the names of its pods."""
    assert dispatch.ask(**over).status_code == 204
    names = dispatch.operator.start(RUN)
    dispatch.deps.bus.publish(an_event("started", time=datetime.now(UTC)))
    return names


def runs(api: KubeApi) -> list[str]:
    return [item["metadata"]["name"] for item in api.of("pytorchjobs")]


def error_of(job: Job) -> str:
    return str(job.outcome["error"]["code"])


def test_a_request_becomes_one_run_however_often_it_is_delivered(dispatch: Dispatch, api: KubeApi) -> None:
    dispatch.ask()
    assert dispatch.deps.history.get(TENANT, JOB).stage == "launching"

    answers = {dispatch.tell(an_event("requested")).status_code for _ in range(3)}

    assert (answers, runs(api)) == ({204}, [RUN])


def test_what_a_run_waits_for_is_the_jobs_stage_until_it_starts(dispatch: Dispatch) -> None:
    dispatch.ask()
    for name in dispatch.operator.make_pods(RUN):
        dispatch.operator.unschedulable(name, "0/4 nodes are available")
    assert dispatch.look().stage == "waiting: unschedulable: 0/4 nodes are available"

    dispatch.operator.start(RUN)
    dispatch.look()
    dispatch.deps.bus.publish(an_event("started", time=datetime.now(UTC)))

    assert dispatch.look().stage == "starting"


def test_the_same_reason_is_said_once(dispatch: Dispatch, bus: Bus) -> None:
    dispatch.ask()
    for number in range(3):
        for name in dispatch.operator.make_pods(RUN):
            dispatch.operator.unschedulable(name, f"{number}/4 nodes are available")
        dispatch.look()

    assert len(bus.read("CINEVENT_JOBS", matching="cinevent.*.*.waiting")) == 1


def test_a_run_that_waits_again_does_not_set_its_job_back(dispatch: Dispatch, api: KubeApi, bus: Bus) -> None:
    """Kueue takes the place of a run that goes on later under the same name."""
    started(dispatch)
    api.of("pytorchjobs")[0]["spec"]["runPolicy"]["suspend"] = True

    assert [dispatch.look().stage for _ in range(2)] == ["starting", "starting"]
    assert bus.read("CINEVENT_JOBS", matching="cinevent.*.*.waiting") == []


def test_out_of_memory_is_tried_again_and_the_failed_run_stays_as_evidence(dispatch: Dispatch, api: KubeApi) -> None:
    _, worker = started(dispatch, max_attempts=2)
    dispatch.operator.pod_failed(worker, 137, reason="OOMKilled")
    dispatch.operator.say(RUN, "Failed")

    job = dispatch.look()

    assert (job.attempt, runs(api)) == (2, [RUN, NEXT])
    assert [run.name for run in dispatch.launcher.active()] == [NEXT]
    dispatch.operator.make_pods(NEXT)
    dispatch.operator.pod_failed(f"{NEXT}-master-0", 137, reason="OOMKilled")
    dispatch.operator.say(NEXT, "Failed")
    assert error_of(dispatch.look()) == "out_of_memory"


def test_a_run_that_somebody_deleted_is_followed_by_the_next_attempt(dispatch: Dispatch, api: KubeApi) -> None:
    started(dispatch)
    api.items.clear()

    assert dispatch.look().attempt == 2
    assert runs(api) == [NEXT]


def test_a_lost_node_is_not_waited_for(dispatch: Dispatch, api: KubeApi) -> None:
    started(dispatch)
    gone = f"{datetime.now(UTC) - timedelta(seconds=60):%Y-%m-%dT%H:%M:%SZ}"
    api.of("pods")[1]["metadata"]["deletionTimestamp"] = gone

    job = dispatch.look()

    [retrying] = dispatch.deps.bus.read("CINEVENT_JOBS", matching="cinevent.*.*.retrying")
    assert job.attempt == 2
    assert b"node_lost" in retrying.body


def test_an_image_that_does_not_come_ends_the_job_with_what_to_do(dispatch: Dispatch, api: KubeApi) -> None:
    dispatch.ask(max_attempts=1)
    back_off = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image engine:1"}}
    for name in dispatch.operator.make_pods(RUN):
        dispatch.operator.pod_is(name, "Pending", back_off)
    assert dispatch.look().stage.startswith("waiting: image: ImagePullBackOff")

    for pod in api.of("pods"):
        pod["metadata"]["creationTimestamp"] = "2026-11-20T10:00:00Z"
    job = dispatch.look()

    assert error_of(job) == "image_unavailable"
    assert "correct CINEVENT_ENGINE_IMAGE" in job.outcome["error"]["message"]
    assert runs(api) == []


def test_a_run_that_hangs_is_ended_and_tried_again(dispatch: Dispatch, api: KubeApi) -> None:
    started(dispatch)
    hours_ago = datetime.now(UTC) - timedelta(hours=2)
    dispatch.deps.bus.publish(an_event("started", time=hours_ago, key="again"))
    for name in (f"{RUN}-master-0", f"{RUN}-worker-0"):
        dispatch.operator.pod_is(name, "Running", {"running": {"startedAt": f"{hours_ago:%Y-%m-%dT%H:%M:%SZ}"}})

    assert dispatch.look().attempt == 2
    assert runs(api) == [NEXT]


def test_a_result_without_an_event_is_found_in_the_store(dispatch: Dispatch, tmp_path: Path) -> None:
    started(dispatch)
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(encode(a_manifest()))
    dispatch.deps.store.put(artifact_key(TENANT, JOB, 1, "manifest.json"), manifest, content_type="application/json")
    dispatch.operator.say(RUN, "Succeeded")

    assert dispatch.look().state is State.COMPLETED


def test_a_finished_job_leaves_the_lists_and_a_cancelled_one_the_cluster(dispatch: Dispatch, api: KubeApi) -> None:
    started(dispatch)
    dispatch.operator.say(RUN, "Succeeded")
    dispatch.deps.bus.publish(an_event("completed", time=datetime.now(UTC)))
    dispatch.look()
    dispatch.ask(OTHER)
    dispatch.deps.bus.publish(an_event("cancel", job=OTHER))

    assert dispatch.tell(an_event("cancel", job=OTHER)).status_code == 204

    assert runs(api) == [RUN]
    assert dispatch.launcher.active() == []
    assert dispatch.deps.history.get(TENANT, OTHER).state is State.CANCELLED


def test_a_run_that_nobody_could_speak_of_is_ended_with_its_job(dispatch: Dispatch, api: KubeApi) -> None:
    """dispatch was killed after the creation; the cancel came before the request was delivered again."""
    dispatch.deps.bus.publish(an_event("requested", time=datetime.now(UTC)))
    dispatch.launcher.launch(dispatch.deps.history.get(TENANT, JOB), attempt=1, plan=a_plan(), environ={})
    dispatch.deps.bus.publish(an_event("cancel"))

    assert dispatch.tell(an_event("cancel")).status_code == 204

    assert (runs(api), dispatch.deps.history.get(TENANT, JOB).state) == ([], State.CANCELLED)
    dispatch.launcher.launch(dispatch.deps.history.get(TENANT, JOB), attempt=1, plan=a_plan(), environ={})
    assert dispatch.tell(an_event("requested")).status_code == 204
    assert runs(api) == []


def test_a_run_of_an_older_attempt_is_ended(dispatch: Dispatch, api: KubeApi) -> None:
    """dispatch died between two acts, or a run that was taken for lost came back."""
    started(dispatch)
    dispatch.deps.bus.publish(an_event("retrying"))
    dispatch.look()
    path = next(path for path in api.items if path.endswith(NEXT))
    old = {**api.items[path], "metadata": {**api.items[path]["metadata"], "name": RUN, "uid": "old"}}
    api.items[path.replace(NEXT, RUN)] = old

    dispatch.look()

    assert runs(api) == [NEXT]


@pytest.mark.parametrize("mode", ["resource", "ref"])
def test_a_hint_is_a_look_before_the_alarm(dispatch: Dispatch, api: KubeApi, mode: str) -> None:
    started(dispatch)
    dispatch.operator.say(RUN, "Failed")
    item = {"kind": "PyTorchJob", "name": RUN} if mode == "ref" else api.of("pytorchjobs")[0]

    assert dispatch.hint(item, f"{mode}.update") == 204

    assert dispatch.deps.history.get(TENANT, JOB).attempt == 2


def test_a_hint_about_a_run_whose_job_is_unknown_ends_it(dispatch: Dispatch, api: KubeApi) -> None:
    dispatch.ask()
    item = api.of("pytorchjobs")[0]
    unknown = derived_id(TENANT, "test", "unknown")
    labels = {**item["metadata"]["labels"], "cinevent.io/job": unknown}
    metadata = {**item["metadata"], "name": run_name(unknown, 1), "labels": labels, "uid": "unknown"}
    path = next(path for path in api.items if path.endswith(RUN)).replace(JOB, unknown)
    api.items[path] = {**item, "metadata": metadata}

    assert dispatch.hint(api.items[path]) == 204

    assert runs(api) == [RUN]


def test_a_forged_hint_ends_nothing(dispatch: Dispatch, api: KubeApi) -> None:
    dispatch.ask()
    forged = {"metadata": {"name": RUN, "labels": {"cinevent.io/tenant": "other", "cinevent.io/job": JOB}}}

    assert [dispatch.hint(forged), dispatch.hint({"metadata": {"name": "something-else"}})] == [204, 204]

    assert runs(api) == [RUN]


def test_when_all_is_full_the_source_pauses(settings: Settings, kube: Kube) -> None:
    dispatch = Dispatch(replace(settings, max_runs=9, max_gpus=2), kube)
    try:
        dispatch.ask()
        refused = dispatch.ask(OTHER)
    finally:
        dispatch.deps.close()

    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")


def test_a_tenant_at_its_limit_waits_alone(settings: Settings, kube: Kube) -> None:
    dispatch = Dispatch(replace(settings, max_runs=9, max_tenant_runs=1), kube)
    try:
        dispatch.ask()
        refused = dispatch.ask(OTHER)
        others = dispatch.ask(derived_id("team-b", "test", "1"), tenant="team-b")
    finally:
        dispatch.deps.close()

    assert (refused.status_code, refused.json["code"], refused.headers["Retry-After"]) == (
        503,
        "tenant_at_capacity",
        "5",
    )
    assert others.status_code == 204


def test_a_job_that_the_cluster_refuses_fails_with_its_words(dispatch: Dispatch, api: KubeApi) -> None:
    def refuse(call: Call) -> None:
        if call.method == "POST":
            raise Refused(403, "Forbidden", "admission webhook denied the request: images must be signed")

    api.before = refuse

    assert dispatch.ask().status_code == 204
    job = dispatch.deps.history.get(TENANT, JOB)
    assert error_of(job) == "launch_refused"
    assert "images must be signed" in job.outcome["error"]["message"]


def test_while_the_api_server_is_away_a_request_waits_and_is_not_lost(
    dispatch: Dispatch, api: KubeApi, bus: Bus
) -> None:
    def refuse(_call: Call) -> None:
        raise Refused(500, "InternalError", "failed calling webhook", **{"Retry-After": "9"})

    api.before = refuse
    refused = dispatch.ask()
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "9")

    api.before = lambda _: None
    assert dispatch.tell(an_event("requested")).status_code == 204
    assert runs(api) == [RUN]
    due = f"cinevent.alarms.due.{TENANT}.{JOB}.check"
    wait_until(lambda: bus.read("CINEVENT_ALARMS", matching=due), what="the alarm rings")
