"""dispatch's role grants what its launchers ask of the API server, no less and no more."""

import re
from collections import defaultdict
from collections.abc import Callable

import pytest

from engine.contract.settings import Settings
from functions.dispatch.launchers.cluster import KINDS, ClusterLauncher
from functions.dispatch.launchers.kube import Kube
from functions.dispatch.launchers.permissions import BY_LAUNCHER, WORKLOADS, Permission
from tests.kube_api import Call, KubeApi
from tests.make import a_job, a_plan
from tests.manifests import of

VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}
PLAN = a_plan(num_nodes=2, ring=2)


def asked(calls: list[Call]) -> dict[tuple[str, str], set[str]]:
    """Verbs by group and resource, as Kubernetes' authorization sees these calls."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for call in calls:
        match = re.fullmatch(r"/apis?/(?:([^/]+)/)?v[^/]+/namespaces/[^/]+/([^/]+)(/[^/]+)?", call.path)
        assert match, call.path
        verb = VERBS.get(call.method, "get" if match[3] else "list")
        found[match[1] or "", match[2]].add(verb)
    return found


def granted(permissions: tuple[Permission, ...]) -> dict[tuple[str, str], set[str]]:
    return {(each.group, each.resource): set(each.verbs) for each in permissions}


def use_everything(open_launcher: Callable[[], ClusterLauncher], api: KubeApi) -> None:
    """Every way through a launcher: two launches of one run, a look at it in each state, and its two ends."""
    job = a_job()
    run = f"{job.id}-a1"
    # Each step with a launcher whose lists are empty.
    for _ in range(2):
        open_launcher().launch(job, attempt=1, plan=PLAN, environ={})
    item = next(item for path, item in api.items.items() if path.endswith(run) and "/services/" not in path)
    open_launcher().observe(run)
    spec = item["spec"]
    item["spec"] = {**spec, "suspend": True, "runPolicy": {"suspend": True}}
    item["status"] = {"conditions": [{"type": "Suspended", "status": "True"}]}
    open_launcher().observe(run)
    item["spec"], item["status"] = spec, {"conditions": [{"type": "Failed", "status": "True"}]}
    open_launcher().cancel(run)
    item["status"] = {}
    open_launcher().cancel(run)
    open_launcher().observe(run)


@pytest.mark.parametrize("name", KINDS)
def test_a_launcher_asks_for_what_it_is_granted_and_no_more(name: str, kube: Kube, api: KubeApi) -> None:
    settings = Settings(launcher=name, engine_image="registry.example/engine:1.0", kueue_queue="cinevent")

    use_everything(lambda: ClusterLauncher(kube, KINDS[name], settings=settings), api)

    assert asked(api.calls) == granted((*BY_LAUNCHER[name], WORKLOADS))


def test_the_role_of_dispatch_is_what_its_launchers_may_need() -> None:
    every = {permission for permissions in BY_LAUNCHER.values() for permission in permissions} | {WORKLOADS}
    rules = of("Role", "prod")["cinevent-dispatch"]["rules"]

    role = {
        (group, resource): set(rule["verbs"])
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }

    assert role == granted(tuple(every))
