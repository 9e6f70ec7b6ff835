"""What a launcher in a cluster promises, held by both kinds of runs."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from engine.contract.errors import AtCapacity, JobFailed, Unavailable
from engine.contract.job import Job, run_name
from engine.contract.settings import Settings
from functions.dispatch.launcher import ActiveRun, Observation, Phase
from functions.dispatch.launchers.cluster import KINDS, ClusterLauncher
from functions.dispatch.launchers.kind import Kind
from functions.dispatch.launchers.kube import Json, Kube
from tests.kube.operator import Operator
from tests.kube_api import Call, KubeApi, Refused
from tests.make import JOB, PROMPT, TENANT, a_job, a_plan

RUN = run_name(JOB, 1)
SERVICES = "/api/v1/namespaces/{namespace}/services"
PLAN = a_plan(num_nodes=2, ring=2)
SETTINGS = Settings(engine_image="registry.example/engine:1.0")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def launcher(kube: Kube, kind: Kind) -> ClusterLauncher:
    return ClusterLauncher(kube, kind, settings=SETTINGS)


@pytest.fixture
def operator(kube: Kube, kind: Kind) -> Operator:
    return Operator(kube, kind)


def launch(launcher: ClusterLauncher, *, attempt: int = 1, job: Job | None = None) -> None:
    job = replace(job or a_job(), created_at=datetime.now(UTC))
    launcher.launch(job, attempt=attempt, plan=PLAN, environ={})


def observe(kube: Kube, kind: Kind, run: str = RUN) -> Observation:
    """As a dispatch sees it that has just started: nothing is remembered."""
    return ClusterLauncher(kube, kind, settings=SETTINGS).observe(run)


def all_of(kube: Kube, collection: str) -> list[Json]:
    """Every object of a collection."""
    return kube.list_all(collection.format(namespace=kube.namespace), labels={}, keep=dict)


def the_run(kube: Kube, kind: Kind) -> Json:
    [found] = all_of(kube, kind.collection)
    return found


def path_of(kube: Kube, kind: Kind) -> str:
    """Of the run."""
    return f"{kind.collection.format(namespace=kube.namespace)}/{RUN}"


def test_a_run_that_was_never_started_is_absent(launcher: ClusterLauncher) -> None:
    assert launcher.observe(RUN).phase is Phase.ABSENT
    assert launcher.active() == []


def test_a_launched_run_is_active_and_known_to_every_dispatch(
    launcher: ClusterLauncher, kube: Kube, kind: Kind
) -> None:
    launch(launcher)

    active = ActiveRun(name=RUN, tenant=TENANT, num_gpus=4)
    assert launcher.active() == ClusterLauncher(kube, kind, settings=SETTINGS).active() == [active]
    assert launcher.observe(RUN).phase is Phase.WAITING


def test_the_prompt_is_nowhere_in_the_cluster(launcher: ClusterLauncher, kube: Kube, kind: Kind) -> None:
    launch(launcher)

    assert PROMPT not in str((the_run(kube, kind), all_of(kube, SERVICES)))


def test_launching_an_attempt_again_makes_nothing(launcher: ClusterLauncher, kube: Kube, kind: Kind) -> None:
    launch(launcher)
    made = (the_run(kube, kind), all_of(kube, SERVICES))

    launch(launcher)

    assert (the_run(kube, kind), all_of(kube, SERVICES)) == made


def test_a_launch_that_was_cut_short_is_made_whole(kube: Kube, kind: Kind, launcher: ClusterLauncher) -> None:
    launch(launcher)
    for item in all_of(kube, SERVICES):
        kube.delete(f"{SERVICES.format(namespace=kube.namespace)}/{RUN}", uid=item["metadata"]["uid"])

    launch(ClusterLauncher(kube, kind, settings=SETTINGS))

    services = all_of(kube, SERVICES)
    assert len(services) == (1 if kind.name == "indexedjob" else 0)
    owners = [owner["uid"] for service in services for owner in service["metadata"]["ownerReferences"]]
    assert owners == [the_run(kube, kind)["metadata"]["uid"]] * len(services)


def test_a_name_that_is_somebody_elses_is_not_taken(launcher: ClusterLauncher, kube: Kube, kind: Kind) -> None:
    launch(launcher)
    kube.patch(path_of(kube, kind), {"metadata": {"labels": {"cinevent.io/tenant": "other"}}})

    with pytest.raises(Unavailable, match="is not this job's; delete it"):
        launch(launcher)


def test_a_name_that_is_being_deleted_is_waited_for(launcher: ClusterLauncher, kube: Kube, kind: Kind) -> None:
    launch(launcher)
    kube.patch(path_of(kube, kind), {"metadata": {"finalizers": ["example.com/somebody-elses"]}})
    kube.delete(path_of(kube, kind), uid=the_run(kube, kind)["metadata"]["uid"])

    with pytest.raises(Unavailable, match="is being deleted"):
        launch(launcher)


def test_a_run_with_all_its_pods_up_is_running(
    launcher: ClusterLauncher, operator: Operator, kube: Kube, kind: Kind
) -> None:
    launch(launcher)
    operator.start(RUN)

    seen = observe(kube, kind)

    assert seen.phase is Phase.RUNNING
    assert seen.launched_at is not None


def test_a_run_without_room_says_so(launcher: ClusterLauncher, operator: Operator, kube: Kube, kind: Kind) -> None:
    launch(launcher)
    for name in operator.make_pods(RUN):
        operator.unschedulable(name, "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.")

    seen = observe(kube, kind)

    assert (seen.phase, seen.waiting.reason) == (Phase.WAITING, "unschedulable")
    assert "Insufficient nvidia.com/gpu" in seen.waiting.message


def test_a_run_that_ends_well_has_succeeded(
    launcher: ClusterLauncher, operator: Operator, kube: Kube, kind: Kind
) -> None:
    launch(launcher)
    operator.start(RUN)
    operator.say(RUN, "Succeeded" if kind.name == "pytorchjob" else "Complete")

    assert observe(kube, kind).phase is Phase.SUCCEEDED
    assert ClusterLauncher(kube, kind, settings=SETTINGS).active() == []


def test_a_failed_run_shows_the_reason_and_the_end_of_its_log(
    launcher: ClusterLauncher, operator: Operator, kube: Kube, kind: Kind
) -> None:
    launch(launcher)
    _, worker = operator.start(RUN)
    operator.pod_failed(worker, 137, reason="OOMKilled", message="step 3 of 8\n")
    operator.say(RUN, "Failed", reason="PyTorchJobFailed")

    seen = observe(kube, kind)

    assert seen.phase is Phase.FAILED
    assert (seen.failure.code, seen.failure.log_tail) == ("out_of_memory", "step 3 of 8")


def test_cancel_deletes_a_run(launcher: ClusterLauncher, operator: Operator, kube: Kube, kind: Kind) -> None:
    launch(launcher)
    operator.start(RUN)

    launcher.cancel(RUN)

    assert all_of(kube, kind.collection) == []
    assert launcher.observe(RUN, is_fresh=True).phase is not Phase.RUNNING
    assert launcher.active() == []


def test_cancel_deletes_in_the_background_what_a_run_owns(
    launcher: ClusterLauncher, operator: Operator, api: KubeApi
) -> None:
    launch(launcher)
    operator.start(RUN)

    launcher.cancel(RUN)

    assert api.items == {}
    [deletion] = [call for call in api.calls if call.method == "DELETE"]
    assert deletion.body["propagationPolicy"] == "Background"
    assert "uid" in deletion.body["preconditions"]


def test_cancel_leaves_a_run_that_is_over_as_evidence_and_out_of_the_lists(
    launcher: ClusterLauncher, operator: Operator, kube: Kube, kind: Kind
) -> None:
    launch(launcher)
    operator.start(RUN)
    operator.say(RUN, "Failed", reason="PyTorchJobFailed")

    launcher.cancel(RUN)
    left = the_run(kube, kind)
    launcher.cancel(RUN)

    assert the_run(kube, kind) == left
    assert "cinevent.io/active" not in left["metadata"]["labels"]
    assert observe(kube, kind).phase is Phase.FAILED


def test_cancelling_what_is_not_there_or_not_ours_touches_nothing(
    launcher: ClusterLauncher, kube: Kube, kind: Kind
) -> None:
    launcher.cancel(RUN)
    launch(launcher)
    kube.patch(path_of(kube, kind), {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}})

    launcher.cancel(RUN)

    assert the_run(kube, kind)["metadata"]["name"] == RUN


def test_many_looks_share_the_lists(
    launcher: ClusterLauncher, operator: Operator, kube: Kube, kind: Kind, api: KubeApi
) -> None:
    launch(launcher)
    operator.start(RUN)
    looking = ClusterLauncher(kube, kind, settings=SETTINGS)
    api.calls.clear()

    seen = {looking.observe(RUN).phase for _ in range(100)}

    assert (seen, len(api.calls)) == ({Phase.RUNNING}, 2)


def test_a_fresh_look_sees_what_the_lists_do_not_have_yet(
    launcher: ClusterLauncher, operator: Operator, kube: Kube, kind: Kind
) -> None:
    launch(launcher)
    operator.start(RUN)
    looking = ClusterLauncher(kube, kind, settings=SETTINGS)
    assert looking.observe(RUN).phase is Phase.RUNNING

    operator.say(RUN, "Failed", reason="PyTorchJobFailed")

    assert (looking.observe(RUN).phase, looking.observe(RUN, is_fresh=True).phase) == (Phase.RUNNING, Phase.FAILED)


def test_a_run_that_is_younger_than_the_lists_is_not_taken_for_lost(
    launcher: ClusterLauncher, kube: Kube, kind: Kind
) -> None:
    """Another dispatch made it a moment ago: a second attempt beside it would have been started."""
    other = ClusterLauncher(kube, kind, settings=SETTINGS)
    assert other.active() == []

    launch(launcher)

    assert other.observe(RUN).phase is Phase.WAITING


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (403, "admission webhook denied the request: bad name", JobFailed),
        (403, "exceeded quota: count/jobs.batch", AtCapacity),
        (500, "failed calling webhook", Unavailable),
    ],
)
def test_a_refusal_says_whether_it_may_work_later(
    launcher: ClusterLauncher, api: KubeApi, status: int, message: str, error: type[Exception]
) -> None:
    def refuse(call: Call) -> None:
        if call.method == "POST":
            raise Refused(status, "Forbidden" if status == 403 else "InternalError", message)

    api.before = refuse

    with pytest.raises(error):
        launch(launcher)
    assert api.items == {}


def test_a_run_that_kueue_holds_back_is_queued(kube: Kube, kind: Kind) -> None:
    settings = replace(SETTINGS, kueue_queue="video")
    launcher = ClusterLauncher(kube, kind, settings=settings)
    launch(launcher)
    # What Kueue's webhook does.
    suspended = {"suspend": True}
    kube.patch(path_of(kube, kind), {"spec": {"runPolicy": suspended} if kind.name == "pytorchjob" else suspended})
    # One by one: what stands in a list of a built-in kind does not say what it is.
    run = kube.get(path_of(kube, kind))
    workloads = f"/apis/kueue.x-k8s.io/v1beta1/namespaces/{kube.namespace}/workloads"
    owner = {"uid": run["metadata"]["uid"], "kind": run["kind"], "name": RUN, "apiVersion": run["apiVersion"]}
    pods = {"name": "main", "count": 1, "template": {"spec": {"containers": [{"name": "a", "image": "b"}]}}}
    spec = {"active": True, "podSets": [pods]}
    made = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "Workload", "spec": spec}
    kube.create(workloads, {**made, "metadata": {"name": "w", "ownerReferences": [owner]}})

    fresh = ClusterLauncher(kube, kind, settings=settings)
    assert [run.is_queued for run in fresh.active()] == [True]
    assert fresh.observe(RUN).waiting.reason == "queued"

    kube.patch(f"{workloads}/w", {"spec": {"active": False}})
    failure = ClusterLauncher(kube, kind, settings=settings).observe(RUN).failure
    assert failure.code == "queue_deactivated"
