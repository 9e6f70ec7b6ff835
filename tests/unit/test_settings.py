"""Settings from a mapping, and back into one for a child process."""

from dataclasses import Field, fields

import pytest

from engine.contract.errors import Invalid
from engine.contract.settings import Settings, env_name
from engine.contract.speed import Speed

OTHER = {
    "tenant": "team-1",
    "store_url": "s3://bucket/prefix",
    "models_url": "s3://bucket/prefix",
    "oidc_issuer": "https://id.example.com",
    "oidc_jwks_url": "https://id.example.com/keys",
    "engine_command": "python -m 'my engine'",
    "launcher": "pytorchjob",
    "max_gpus": 16,
    "compile": True,
    "attention": "flash",
    "weights_dtype": "float8",
    "offload": "never",
    "webhook_allow": "127.0.0.0/8,localhost",
    "webhook_deny": "203.0.113.0/24",
    "webhook_ports": "443,8443",
}
"""Values beside the defaults for the fields that not any text or number fits."""


def other(name: str, default: object) -> object:
    """A valid value that is not the default."""
    if name in OTHER:
        return OTHER[name]
    return default + 1 if isinstance(default, int | float) else f"{default}x"


def problems(environ: dict[str, str]) -> list[tuple[str, str]]:
    """Variable and rule of every problem."""
    with pytest.raises(Invalid) as caught:
        Settings.read(environ)
    return [(problem.pointer, problem.rule) for problem in caught.value.problems]


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.read({}) == Settings()
    assert Settings().environ() == {}


def test_settings_survive_the_way_through_an_environment() -> None:
    settings = Settings(**{item.name: other(item.name, item.default) for item in fields(Settings)})

    assert Settings.read(settings.environ()) == settings
    assert len(settings.environ()) == len(fields(Settings))


@pytest.mark.parametrize(("text", "value"), [("1", True), ("True", True), ("0", False), ("false", False)])
def test_a_switch_is_on_or_off(text: str, value: bool) -> None:
    assert Settings.read({"CINEVENT_COMPILE": text}).speed == Speed(compile=value, offload="auto")


def test_other_variables_are_none_of_our_business() -> None:
    assert Settings.read({"PATH": "/bin", "CINEVENT_FUNCTION": "submit", "nats_url": "nats://other"}) == Settings()


def test_an_empty_variable_is_an_unset_one() -> None:
    assert Settings.read({"CINEVENT_NATS_URL": "", "CINEVENT_MAX_RUNS": ""}) == Settings()


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("CINEVENT_MAX_RUNS", "many", "type"),
        ("CINEVENT_MAX_RUNS", "1.5", "type"),
        ("CINEVENT_STALL_S", "soon", "type"),
        ("CINEVENT_COMPILE", "perhaps", "type"),
        ("CINEVENT_ATTENTION", "fast", "choice"),
        ("CINEVENT_WEIGHTS_DTYPE", "int4", "choice"),
        ("CINEVENT_OFFLOAD", "1", "choice"),
        ("CINEVENT_MAX_RUNS", "0", "positive"),
        ("CINEVENT_NUM_NODES", "-1", "positive"),
        ("CINEVENT_DECODE_MEMORY_GIB", "-1", "range"),
        ("CINEVENT_DECODE_MEMORY_GIB", "nan", "range"),
        ("CINEVENT_DECODE_MEMORY_GIB", "25769803776", "range"),
        ("CINEVENT_STALL_S", "nan", "positive"),
        ("CINEVENT_GPU_MEMORY_GIB", "-1", "range"),
        ("CINEVENT_GPU_MEMORY_GIB", "nan", "range"),
        ("CINEVENT_CHECKPOINT_INTERVAL_S", "-1", "range"),
        ("CINEVENT_WEBHOOK_TIMEOUT_S", "60", "maximum"),
        ("CINEVENT_WEBHOOK_PATIENCE_S", "60", "maximum"),
        ("CINEVENT_WEBHOOK_TIME_SCALE", "0", "positive"),
        ("CINEVENT_TENANT", "Team", "tenant"),
        ("CINEVENT_TENANT", "dead", "tenant"),
        ("CINEVENT_STORE_URL", "/var/store", "scheme"),
        ("CINEVENT_MODELS_URL", "/var/models", "scheme"),
        ("CINEVENT_MODELS_URL", "s3://", "scheme"),
        ("CINEVENT_MODELS_URL", "hub@", "scheme"),
        ("CINEVENT_ENGINE_COMMAND", "python 'unclosed", "shell"),
        ("CINEVENT_LAUNCHER", "slurm", "enum"),
        ("CINEVENT_MAX_GPUS", "-1", "range"),
        ("CINEVENT_MAX_TENANT_RUNS", "-1", "range"),
        ("CINEVENT_NAMESPACE", "Video", "dns_label"),
        ("CINEVENT_KUEUE_QUEUE", "a.b", "dns_label"),
    ],
)
def test_a_bad_value_is_named_with_its_variable(variable: str, value: str, rule: str) -> None:
    assert problems({variable: value}) == [(variable, rule)]


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "s3://bucket/a/prefix", "hub", "hub@refs/pr/4"])
def test_places_of_models_are_accepted(url: str) -> None:
    assert Settings.read({"CINEVENT_MODELS_URL": url}).models_url == url


def test_a_launcher_in_a_cluster_needs_an_image() -> None:
    assert problems({"CINEVENT_LAUNCHER": "pytorchjob"}) == [("CINEVENT_ENGINE_IMAGE", "required")]


def test_fewer_gpus_than_one_job_takes_are_refused() -> None:
    environ = {"CINEVENT_NUM_NODES": "2", "CINEVENT_NUM_PROCESSES": "8"}

    assert problems({**environ, "CINEVENT_MAX_GPUS": "15"}) == [("CINEVENT_MAX_GPUS", "range")]
    assert Settings.read({**environ, "CINEVENT_MAX_GPUS": "16"}).max_gpus == 16


def test_every_bad_value_is_named_at_once() -> None:
    environ = {"CINEVENT_MAX_RUNS": "many", "CINEVENT_STALL_S": "soon", "CINEVENT_TENANT": "default"}

    assert problems(environ) == [("CINEVENT_MAX_RUNS", "type"), ("CINEVENT_STALL_S", "type")]


@pytest.mark.parametrize("item", fields(Settings), ids=lambda item: item.name)
def test_every_field_is_documented_in_a_sentence(item: Field[object]) -> None:
    doc = item.metadata["doc"]

    assert doc[0].isupper()
    assert doc.endswith(".")


def test_a_variable_is_its_field_in_capitals() -> None:
    assert env_name("nats_url") == "CINEVENT_NATS_URL"
