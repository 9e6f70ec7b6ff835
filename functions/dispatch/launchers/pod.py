"""The pod template of a run: pod.yaml, the operator's overlay, then what belongs to this job. Pure, but for `read`.

Nothing of the request is in it but the job's id and tenant: the engine reads the prompt from the log.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from engine.contract.errors import Invalid, Problem
from engine.contract.job import Job, run_name
from engine.contract.plan import Plan
from engine.contract.settings import Settings, env_name
from functions.dispatch.launchers import overlay

CONTAINER = "pytorch"
LABEL = "cinevent.io/"
MANAGED_BY = {"app.kubernetes.io/managed-by": "cinevent-dispatch"}
ACTIVE = {f"{LABEL}active": "true"}
"""On a run as long as dispatch looks at it."""
PLAN = f"{LABEL}plan"
GPU = "nvidia.com/gpu"
# What dispatch knows and the engine must know too; everything else is the overlay's, and what is secret the Secret's.
_FOR_ENGINE = (
    "nats_url",
    "nats_replicas",
    "store_url",
    "s3_endpoint",
    "models_url",
    "checkpoint_interval_s",
    "decode_memory_gib",
)
_CREDENTIALS = re.compile(r"://[^/]*@")
_KUEUE = "kueue.x-k8s.io/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What is to be started, for any kind of run."""

    job: Job
    attempt: int
    plan: Plan
    deadline_s: int
    """Longest life of each pod, whatever happens to dispatch."""
    environ: Mapping[str, str]
    """What `engine_environ` gave."""
    overlay: Mapping[str, Any]
    image: str
    queue: str = ""

    @property
    def name(self) -> str:
        """Of the run."""
        return run_name(self.job.id, self.attempt)


def read_overlay(path: str) -> dict[str, Any]:
    """The patch in a YAML file; empty without one. Raises Invalid naming the file and each place that is wrong."""
    if not path:
        return {}
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        patch = overlay.check({} if given is None else given)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Invalid(_overlay_problem("", f"{path} cannot be read as YAML: {error}")) from error
    except Invalid as error:
        problems = (_overlay_problem(f" {problem.pointer}", problem.message) for problem in error.problems)
        raise Invalid(*problems) from error
    _check(overlay.merge(_base(), patch))
    return patch


def engine_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environ` that a run gets. An address with credentials is none: it belongs into the Secret."""
    names = [env_name(name) for name in _FOR_ENGINE]
    assert set(_FOR_ENGINE) <= {item.name for item in fields(Settings)}
    return {name: environ[name] for name in names if name in environ and not _CREDENTIALS.search(environ[name])}


def labels(order: Order) -> dict[str, str]:
    """What marks a run and its pods as this attempt's."""
    return {
        "app.kubernetes.io/name": "cinevent",
        "app.kubernetes.io/component": "engine",
        **MANAGED_BY,
        f"{LABEL}job": order.job.id,
        f"{LABEL}tenant": order.job.tenant,
        f"{LABEL}attempt": str(order.attempt),
    }


def metadata(order: Order) -> dict[str, Any]:
    """Of the run itself."""
    queue = {}
    if order.queue:
        queue = {
            f"{_KUEUE}queue-name": order.queue,
            f"{_KUEUE}priority-class": f"cinevent-{order.job.request.priority}",
        }
    return {
        "name": order.name,
        "labels": {**labels(order), **ACTIVE, **queue},
        "annotations": {PLAN: json.dumps(order.plan.to_json())},
    }


def template(order: Order, *, environ: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The pod template; `environ`: more variables by name, a text or a `valueFrom`."""
    limits = {"resources": {"limits": {GPU: str(order.plan.num_processes)}}}
    base = overlay.merge(_base(), {"spec": {"containers": [{"name": CONTAINER, **limits}]}})
    pod = overlay.merge(base, order.overlay)
    own = {
        **order.environ,
        "CINEVENT_JOB": order.job.id,
        "CINEVENT_TENANT": order.job.tenant,
        "CINEVENT_ATTEMPT": str(order.attempt),
        "CINEVENT_PLAN": json.dumps(order.plan.to_json()),
        **(environ or {}),
    }
    container = {"name": CONTAINER, "env": [_variable(name, value) for name, value in own.items()]}
    if not _image(pod):
        container["image"] = order.image
    made: dict[str, Any] = overlay.merge(
        pod,
        {
            "metadata": {"labels": labels(order)},
            "spec": {"activeDeadlineSeconds": order.deadline_s, "containers": [container]},
        },
    )
    return made


@cache
def _base() -> dict[str, Any]:
    text = files("functions.dispatch.launchers").joinpath("pod.yaml").read_text(encoding="utf-8")
    base: dict[str, Any] = yaml.safe_load(text)
    return base


def _variable(name: str, value: Any) -> dict[str, Any]:
    # Replaced as a whole: a text beside the overlay's `valueFrom` would be refused.
    return {"name": name, "$patch": "replace", **({"value": value} if isinstance(value, str) else value)}


def _image(pod: Mapping[str, Any]) -> str | None:
    return next((c.get("image") for c in pod["spec"]["containers"] if c["name"] == CONTAINER), None)


def _check(pod: Mapping[str, Any]) -> None:
    if not any(container["name"] == CONTAINER and container.get("command") for container in pod["spec"]["containers"]):
        raise Invalid(_overlay_problem("", f"it takes away the container {CONTAINER!r} or its command; leave both in"))


def _overlay_problem(place: str, message: str) -> Problem:
    return Problem(pointer=f"{env_name('run_overlay')}{place}", rule="overlay", message=message)
