"""Settings: every environment variable that Cinevent reads, in one list. Pure: built from a mapping.

`Settings.read(os.environ)` is called once, at the top of a process. docs/settings.md is generated from this file.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any

from engine.contract.address import Policy
from engine.contract.errors import Invalid, Problem
from engine.contract.job import is_tenant
from engine.contract.rules import url_problems
from engine.contract.speed import ATTENTION, OFFLOAD, WEIGHTS_DTYPES, Speed, unknown

# A source waits 60 s for notify's answer; a delivery that takes longer would be sent twice.
_WEBHOOK_TIMEOUT_MAX_S = 45.0
# More than any device has: a number in bytes instead of gibibytes is found.
_MEMORY_MAX_GIB = 1e6
LAUNCHERS = ("local", "pytorchjob", "indexedjob")
# A DNS label, as Kubernetes wants it of namespaces and as Kueue's label wants it of queues.
_DNS_LABEL = re.compile(r"([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?")
# functions/gunicorn_conf.py has 256 threads; some must be left for those that only ask.
_FOLLOWERS_MAX = 220
_MODELS_URL = re.compile(r"|s3://[^/]+(/.*)?|hub(@[^@\s]+)?")


def _env(default: Any, doc: str) -> Any:
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """One field per variable: field `nats_url` is CINEVENT_NATS_URL."""

    nats_url: str = _env("nats://127.0.0.1:4222", "NATS servers, separated by commas.")
    nats_creds: str = _env("", "File with NATS credentials; empty: none.")
    nats_nkey: str = _env("", "File with the NKey seed that NATS knows this process by; empty: none.")
    nats_replicas: int = _env(1, "Copies of each stream; 3 where NATS runs in three zones.")
    ack_wait_s: float = _env(
        30.0,
        "Seconds after which the messages of a source that died are given to another; a living one says every third of"
        " it that it still has them.",
    )
    store_url: str = _env(
        "file:.cinevent/store",
        "Where artifacts go: file:DIRECTORY, or s3://BUCKET/PREFIX (credentials as boto3 finds them).",
    )
    s3_endpoint: str = _env("", "Address of an S3 service other than AWS; empty: AWS.")
    models_dir: str = _env(".cinevent/models", "Folder with one diffusers folder per model, named after the model.")
    models_url: str = _env(
        "",
        "Where a model that CINEVENT_MODELS_DIR lacks is fetched from: s3://BUCKET/PREFIX with one folder per model, or"
        " hub or hub@REVISION for the Hugging Face hub; empty: nowhere. [models.md](models.md) says more.",
    )
    tenant: str = _env("default", "Tenant of every request where nobody has to say who they are, as on one machine.")
    keys_file: str = _env(
        "",
        "File with the API keys that submit takes, as `cinevent keys` writes it; read again when it changes. Without it"
        " and CINEVENT_OIDC_ISSUER everybody who reaches submit is the one tenant.",
    )
    oidc_issuer: str = _env("", "Issuer of JSON web tokens that submit takes beside keys; empty: none.")
    oidc_audience: str = _env("cinevent", "What a token must name as its audience.")
    oidc_jwks_url: str = _env("", "Where the issuer's keys are; empty: where its openid-configuration says.")
    oidc_tenant_claim: str = _env("tenant", "The claim of a token that names the tenant.")
    max_submits_per_minute: int = _env(0, "Requests that a tenant may send in a minute; 0: any number.")
    max_waiting: int = _env(0, "Jobs of a tenant that may wait at one time; 0: any number.")
    max_followers: int = _env(
        200, "Clients that may follow jobs or wait for their end at one time, in one instance of submit; 1 to 220."
    )
    api_key: str = _env("", "The key that the command line sends to submit.")
    runs_dir: str = _env(".cinevent/runs", "Where the local launcher keeps one folder per run, with its log.")
    num_nodes: int = _env(1, "Nodes per job.")
    num_processes: int = _env(1, "Processes per node: its GPUs, or 1 to 2 without any.")
    gpu_memory_gib: float = _env(
        0.0,
        "Memory of one GPU in GiB; a job that cannot fit is refused before a GPU is asked for; 0: not checked.",
    )
    compile: bool = _env(
        default=False,
        doc="With 1 the layers of a model run as torch.compile made them, which needs a C++ compiler and Python's"
        " headers where the engine runs. [engine.md](engine.md) says what each of these choices gains and changes.",
    )
    compile_dir: str = _env(
        "", "Where compiled code is kept, so that later runs need not wait for it; empty: in CINEVENT_MODELS_DIR."
    )
    attention: str = _env(
        "auto",
        f"Who computes attention: {', '.join(ATTENTION)}. auto: the fastest that the GPU and what is installed have.",
    )
    weights_dtype: str = _env(
        "model", f"How a layer's matrices lie in memory: {' or '.join(WEIGHTS_DTYPES)}. float8 halves it, and is lossy."
    )
    offload: str = _env(
        "auto",
        f"Layers lie in host memory and arrive ahead of their use: {', '.join(OFFLOAD)}. auto: where nothing else fits"
        " into CINEVENT_GPU_MEMORY_GIB.",
    )
    max_runs: int = _env(
        1,
        "Runs at one time; further jobs wait in the queue. With CINEVENT_KUEUE_QUEUE: runs that wait in that queue at"
        " one time.",
    )
    max_gpus: int = _env(
        0,
        "GPUs of all runs together; further jobs wait in the queue. 0: any number. Kueue's own with"
        " CINEVENT_KUEUE_QUEUE.",
    )
    max_tenant_runs: int = _env(
        0,
        "Runs of one tenant at one time; only that tenant's further jobs wait. 0: any number. Kueue's own with"
        " CINEVENT_KUEUE_QUEUE.",
    )
    launcher: str = _env(
        "local",
        "How dispatch starts the engine: local (a child process), pytorchjob (Kubeflow's PyTorchJob) or indexedjob"
        " (batch/v1 Job; needs no operator).",
    )
    namespace: str = _env("", "Kubernetes namespace of the runs; empty: the one that dispatch runs in, else default.")
    engine_image: str = _env("", "Image of the engine's containers; not needed by the local launcher.")
    run_overlay: str = _env(
        "",
        "YAML file with a strategic merge patch on the pod template of every run: resources, node selectors, NCCL,"
        " volumes. Empty: none.",
    )
    kueue_queue: str = _env("", "Kueue's LocalQueue that runs wait in; empty: no Kueue.")
    check_interval_s: float = _env(
        30.0, "Time between two looks at a running job. Shorter finds a dead run sooner and costs one request each."
    )
    stall_s: float = _env(900.0, "A run without a new stage or step for this long is given up and tried again.")
    checkpoint_interval_s: float = _env(
        30.0, "Time between two checkpoints of a run; a run that ends early goes on from the last one. 0: none."
    )
    engine_command: str = _env(
        "", "What the local launcher starts instead of torchrun, for benchmarks; split as a shell would."
    )
    webhook_secret: str = _env(
        "",
        "Signing secret of webhooks that requests name, whsec_ and base64 (Standard Webhooks); two, separated by a"
        " comma, while it is changed.",
    )
    webhook_signing_keys: str = _env(
        "",
        "Ed25519 keys that sign every webhook beside its secret, whsk_ and base64; two, separated by a comma, while"
        " they are changed. Empty: none.",
    )
    webhook_public_keys: str = _env(
        "",
        "The public halves that submit publishes, whpk_ and base64, separated by commas; empty: those of"
        " CINEVENT_WEBHOOK_SIGNING_KEYS.",
    )
    webhook_endpoints: str = _env(
        "", "File with the standing endpoints (YAML or JSON, [webhooks.md](webhooks.md)); empty: none."
    )
    webhook_timeout_s: float = _env(15.0, "Longest time that one delivery may take.")
    webhook_patience_s: float = _env(
        1.0,
        "How long notify keeps a source waiting for a slow receiver; what takes longer goes on beside it, with an alarm"
        " in case notify ends.",
    )
    webhook_time_scale: float = _env(
        1.0, "All waits between the attempts of a delivery are multiplied by it: for tests, which have no three days."
    )
    webhook_disable_after_s: float = _env(
        432_000.0, "A standing endpoint that did nothing but fail for this long, five days, is disabled."
    )
    webhook_allow: str = _env(
        "",
        "Networks and host names that webhooks may reach although they are private, on any port, separated by commas,"
        " such as 127.0.0.0/8.",
    )
    webhook_deny: str = _env(
        "", "Networks that webhooks must not reach beside the private ones: a cluster's own, separated by commas."
    )
    webhook_ports: str = _env("80,443,8443", "Ports that webhooks may reach.")
    public_url: str = _env("http://127.0.0.1:8080", "Address of submit as its users see it; links start with it.")
    decode_memory_gib: float = _env(
        0.0, "Engine: memory that decoding may plan with; frames that need more are tiled. 0: that of the device."
    )
    job: str = _env("", "Engine: the job of this run. Set by the launcher.")
    attempt: int = _env(1, "Engine: the attempt of this run. Set by the launcher.")
    plan: str = _env("", "Engine: the plan of this run as JSON. Set by the launcher.")

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "Settings":
        """The settings in `environ`. Raises Invalid naming each variable with a bad value."""
        values: dict[str, Any] = {}
        problems: list[Problem] = []
        for item in fields(cls):
            name = env_name(item.name)
            if not environ.get(name):
                continue
            try:
                values[item.name] = _PARSERS[type(item.default)](environ[name])
            except (ValueError, KeyError):
                kind = {int: "a whole number", float: "a number", bool: "1 or 0"}[type(item.default)]
                problems.append(Problem(pointer=name, rule="type", message=f"{environ[name]!r} is not {kind}"))
        problems += [] if problems else _rules(cls(**values))
        if problems:
            raise Invalid(*problems)
        return cls(**values)

    @property
    def speed(self) -> Speed:
        """What is chosen to make runs faster or smaller."""
        return Speed(
            compile=self.compile,
            attention=self.attention,
            weights_dtype=self.weights_dtype,
            offload=self.offload,
        )

    def webhook_policy(self) -> Policy:
        """Which addresses webhooks may reach. Raises ValueError."""
        return Policy.read(allow=self.webhook_allow, deny=self.webhook_deny, ports=self.webhook_ports)

    def environ(self) -> dict[str, str]:
        """The variables that `read` turns into these settings again: what a child process gets."""
        return {
            env_name(item.name): str(getattr(self, item.name))
            for item in fields(self)
            if getattr(self, item.name) != item.default
        }


def env_name(field_name: str) -> str:
    """The variable of a field."""
    return f"CINEVENT_{field_name.upper()}"


_FLAGS = {"1": True, "true": True, "0": False, "false": False}
_PARSERS: dict[type, Any] = {str: str, int: int, float: float, bool: lambda text: _FLAGS[text.lower()]}


def _rules(settings: Settings) -> list[Problem]:
    positive = (
        "nats_replicas",
        "ack_wait_s",
        "num_nodes",
        "num_processes",
        "max_runs",
        "check_interval_s",
        "stall_s",
        "webhook_timeout_s",
        "webhook_patience_s",
        "webhook_time_scale",
        "webhook_disable_after_s",
        "attempt",
    )
    problems = [
        Problem(pointer=env_name(name), rule="positive", message=f"{getattr(settings, name)} is not more than 0")
        for name in positive
        if not getattr(settings, name) > 0
    ]
    for name, most in (
        ("checkpoint_interval_s", inf),
        ("gpu_memory_gib", _MEMORY_MAX_GIB),
        ("decode_memory_gib", _MEMORY_MAX_GIB),
    ):
        value = getattr(settings, name)
        if not 0 <= value < most:
            message = f"{value:g} is out of range; allowed: 0, and up to {most:g}"
            problems.append(Problem(pointer=env_name(name), rule="range", message=message))
    problems += _webhook_problems(settings)
    problems += _door_rules(settings)
    if not is_tenant(settings.tenant):
        message = f"{settings.tenant!r} cannot name a tenant; allowed: 1 to 32 of a-z, 0-9 and -, no reserved word"
        problems.append(Problem(pointer=env_name("tenant"), rule="tenant", message=message))
    if not settings.store_url.startswith(("file:", "s3://")):
        message = f"{settings.store_url!r} is not a store; allowed: file:DIRECTORY or s3://BUCKET/PREFIX"
        problems.append(Problem(pointer=env_name("store_url"), rule="scheme", message=message))
    if not _MODELS_URL.fullmatch(settings.models_url):
        message = f"{settings.models_url!r} has no models; allowed: s3://BUCKET/PREFIX, hub, hub@REVISION, or nothing"
        problems.append(Problem(pointer=env_name("models_url"), rule="scheme", message=message))
    problems += [
        Problem(pointer=env_name(name), rule="choice", message=message) for name, message in unknown(settings.speed)
    ]
    try:
        shlex.split(settings.engine_command)
    except ValueError as error:
        problems.append(Problem(pointer=env_name("engine_command"), rule="shell", message=str(error)))
    return problems + _launch_rules(settings)


def _launch_rules(settings: Settings) -> list[Problem]:
    one_job = settings.num_nodes * settings.num_processes
    is_in_cluster = settings.launcher in LAUNCHERS[1:]
    rules = (
        (
            settings.launcher in LAUNCHERS,
            "launcher",
            "enum",
            f"{settings.launcher!r} is no launcher; allowed: {', '.join(LAUNCHERS)}",
        ),
        (
            bool(settings.engine_image) or not is_in_cluster,
            "engine_image",
            "required",
            f"it is empty, and {env_name('launcher')}={settings.launcher} needs it: name the engine's image",
        ),
        (
            settings.max_gpus == 0 or settings.max_gpus >= one_job,
            "max_gpus",
            "range",
            f"{settings.max_gpus} is out of range; one job takes {one_job}; allowed: {one_job} or more, or 0",
        ),
        (
            settings.max_tenant_runs >= 0,
            "max_tenant_runs",
            "range",
            f"{settings.max_tenant_runs} is out of range; allowed: 0 or more",
        ),
        *(
            (
                _DNS_LABEL.fullmatch(getattr(settings, name)) is not None,
                name,
                "dns_label",
                f"{getattr(settings, name)!r} is no DNS label; allowed: up to 63 of a-z, 0-9 and -, or nothing",
            )
            for name in ("namespace", "kueue_queue")
        ),
    )
    return [
        Problem(pointer=env_name(name), rule=rule, message=message) for holds, name, rule, message in rules if not holds
    ]


def _door_rules(settings: Settings) -> list[Problem]:
    """Who may use submit, and how much."""
    problems = [
        Problem(pointer=env_name(name), rule="range", message=f"{getattr(settings, name)} is below 0")
        for name in ("max_submits_per_minute", "max_waiting")
        if getattr(settings, name) < 0
    ]
    if not 1 <= settings.max_followers <= _FOLLOWERS_MAX:
        message = f"{settings.max_followers} is out of range; allowed: 1 to {_FOLLOWERS_MAX}"
        problems.append(Problem(pointer=env_name("max_followers"), rule="range", message=message))
    for name in ("oidc_issuer", "oidc_jwks_url"):
        if getattr(settings, name):
            problems += url_problems(getattr(settings, name), env_name(name))
    return problems


def _webhook_problems(settings: Settings) -> Iterator[Problem]:
    for name in ("webhook_timeout_s", "webhook_patience_s"):
        if getattr(settings, name) > _WEBHOOK_TIMEOUT_MAX_S:
            message = f"{getattr(settings, name):g} is more than {_WEBHOOK_TIMEOUT_MAX_S:g}: the source would not wait"
            yield Problem(pointer=env_name(name), rule="maximum", message=message)
    try:
        settings.webhook_policy()
    except ValueError as error:
        names = ", ".join(env_name(name) for name in ("webhook_allow", "webhook_deny", "webhook_ports"))
        yield Problem(pointer=names, rule="value", message=str(error))
