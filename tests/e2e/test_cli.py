"""The command line: what it prints, its exit codes, its options."""

import argparse
import json
from pathlib import Path

import pytest

from engine.adapters.bus import Bus
from engine.contract.settings import Settings
from engine.contract.streams import dead_subject
from engine.contract.upload import UPLOAD_MAX_BYTES
from functions.cli import make_parser
from tests.e2e.system import System, cinevent
from tests.make import an_event
from tests.servers import free_port

OPTIONS = {
    "local": "--data --json --models --nats-port --port --processes --ready-file",
    "submit": "--cache --crf --file --flow-shift --fps --guidance-scale --guidance-scale-2 --height --image --json "
    "--key --lora --model --nats --negative-prompt --num-frames --preset --priority --sampler --seed --steps --url "
    "--watch --webhook --width",
    "get": "--json --nats --url",
    "watch": "--json --nats --url",
    "cancel": "--json --nats --url",
    "list": "--cursor --json --limit --nats --url",
    "video": "--json --nats --output --url",
    "plan": "--attention --compile --gpu-memory --gpus --json --no-compile --nodes --num-frames --offload --size "
    "--weights-dtype",
    "doctor": "--json --nats-monitor",
    "retry": "--json --nats --url",
    "delete": "--json --nats --url",
    "keys new": "--expires --file --json --note --scopes",
    "keys list": "--file --json",
    "keys revoke": "--file --json",
    "nats-config": "--json --out",
    "webhooks check": "--json",
    "webhooks list": "--cursor --endpoint --json --limit --state --url",
    **{f"webhooks {name}": "--json --url" for name in ("job", "show", "replay", "endpoints", "test", "enable")},
    "webhooks recover": "--json --since --url",
    "dead list": "--json --nats --url",
    "dead show": "--json --nats --url",
    "dead redrive": "--json --nats --url",
}


def options_of(parser: argparse.ArgumentParser, *, path: str = "") -> dict[str, str]:
    """The long options of every command, by the command's words."""
    found: dict[str, str] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                found |= options_of(sub, path=f"{path} {name}".strip())
    if path and not found:
        names = {option for action in parser._actions for option in action.option_strings if option[:2] == "--"}
        found[path] = " ".join(sorted(names - {"--help"}))
    return found


def test_commands_and_options_are_these() -> None:
    """An option is a promise: add it here when it is meant to stay."""
    assert options_of(make_parser()) == OPTIONS


@pytest.mark.parametrize("command", ["", *OPTIONS])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args([*command.split(), "--help"])

    assert ended.value.code == 0
    assert "usage: cinevent" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("get",),
        ("list", "--limit", "x"),
        ("submit", "a", "--model", "sora"),
        ("plan", "sora"),
        ("plan", "tiny-t2v", "--gpus", "0"),
        ("plan", "tiny-t2v", "--size", "1280"),
        ("plan", "tiny-t2v", "--gpu-memory", "nan"),
        ("plan", "tiny-t2v", "--attention", "fast"),
    ],
)
def test_a_wrong_call_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    done = cinevent(*arguments)

    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert "--help" in done.err


def test_without_a_system_the_error_is_one_line_and_exit_code_1() -> None:
    done = cinevent("list", "--url", f"http://127.0.0.1:{free_port()}")

    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "does not answer" in done.err


def test_a_bad_variable_is_named() -> None:
    done = cinevent("list", env={"CINEVENT_MAX_RUNS": "many"})

    assert (done.code, done.err.strip()) == (1, "cinevent: CINEVENT_MAX_RUNS: 'many' is not a whole number")


def test_a_refused_request_says_which_field_and_why(system: System) -> None:
    done = system.cinevent("submit", "a cat", "--width", "100")

    assert done.code == 1
    assert "/input/width" in done.err
    assert "422" in done.err


@pytest.mark.parametrize(
    ("option", "allowed"), [("--sampler", "unipc"), ("--cache", "taylorseer"), ("--preset", "lightning")]
)
def test_a_refused_option_is_answered_with_what_is_allowed(system: System, option: str, allowed: str) -> None:
    done = system.cinevent("submit", "a cat", option, "quick")

    assert (done.code, "422" in done.err, allowed in done.err) == (1, True, True)


def test_options_reach_the_engine_and_a_lora_that_is_not_there_fails_the_job(system: System) -> None:
    options = (
        "--sampler",
        "dpm++",
        "--cache",
        "magcache",
        "--flow-shift",
        "3",
        "--guidance-scale-2",
        "2",
        "--lora",
        "ink=0.5",
    )
    state = system.await_state(system.submit(*options), "FAILED", "COMPLETED")

    given = state["input"]
    assert (given["sampler"], given["cache"], given["flow_shift"]) == ("dpm++", "magcache", 3.0)
    assert (given["guidance_scale_2"], given["loras"]) == (2.0, [{"name": "ink", "scale": 0.5}])
    assert (state["state"], state["attempt"], state["error"]["code"]) == ("FAILED", 1, "lora_invalid")
    assert "no LoRA ink for transformer, transformer_2" in state["error"]["message"]


def test_a_scale_that_is_no_number_is_a_wrong_call() -> None:
    done = cinevent("submit", "a cat", "--lora", "ink=much")

    assert (done.code, "'much' is no scale; write NAME or NAME=0.8" in done.err) == (2, True)


def test_a_request_from_a_file_keeps_its_key(system: System, tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text(json.dumps({"model": "tiny-t2v", "input": {"prompt": "a", "steps": 1}, "priority": "low"}))

    first, second = (system.cinevent("submit", "--file", str(file), "--key", "k1", "--json").json for _ in range(2))

    assert first["id"] == second["id"]
    assert first["priority"] == "low"


@pytest.mark.parametrize("body", [None, b"", b"a cat", b"\x89PNG\r\n\x1a\n" + bytes(UPLOAD_MAX_BYTES)])
def test_a_file_that_is_no_picture_is_not_sent(system: System, tmp_path: Path, body: bytes | None) -> None:
    file = tmp_path / "boat.png"
    if body is not None:
        file.write_bytes(body)

    done = system.cinevent("submit", "a cat", "--model", "tiny-i2v", "--image", str(file))

    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    assert str(file) in done.err


def test_a_picture_for_a_request_from_a_file_is_refused_before_it_is_sent(system: System) -> None:
    done = system.cinevent("submit", "--file", "request.json", "--image", "boat.png")

    assert (done.code, "input.image" in done.err) == (1, True)


def test_list_shows_jobs_as_lines_and_as_json(system: System) -> None:
    job = system.submit("--steps", "1")

    lines, found = system.cinevent("list"), system.cinevent("list", "--json", "--limit", "1")

    assert lines.out.startswith(job)
    assert [entry["id"] for entry in found.json["jobs"]] == [job]


def test_a_plan_is_explained_without_any_system() -> None:
    lines = cinevent("plan", "wan2.2-t2v-a14b", "--gpus", "3", "--size", "832x480")
    answer = cinevent("plan", "wan2.2-t2v-a14b", "--gpus", "3", "--size", "832x480", "--json").json

    assert lines.out.splitlines() == ["wan2.2-t2v-a14b, 832x480, 81 frames, on 1 x 3 GPUs", *answer["why"]]
    assert "ulysses 3: 3 GPUs of one node exchange the 40 heads, 14 each; 2 of 42 are padding" in lines.out
    assert (answer["plan"]["ulysses"], answer["plan"]["shard"]) == (3, 3)
    assert answer["memory"]["peak_bytes"] > answer["memory"]["weights_bytes"]


def test_the_settings_of_an_installation_are_the_defaults_of_a_plan() -> None:
    env = {"CINEVENT_NUM_NODES": "2", "CINEVENT_NUM_PROCESSES": "8", "CINEVENT_GPU_MEMORY_GIB": "24"}
    done = cinevent("plan", "wan2.2-t2v-a14b", "--nodes", "1", "--json", env=env)

    assert (done.json["plan"]["num_nodes"], done.json["plan"]["num_processes"]) == (1, 8)
    assert done.json["plan"]["reshard"]


def test_one_small_gpu_makes_the_largest_model_by_offload() -> None:
    done = cinevent("plan", "wan2.2-t2v-a14b", "--gpus", "1", "--gpu-memory", "24", "--json")

    assert done.json["plan"]["speed"]["offload"] == "always"
    assert done.json["memory"]["peak_bytes"] < 24 * 2**30 < done.json["memory"]["host_bytes"]
    assert [line for line in done.json["why"] if line.startswith("offload always: layers lie in host memory")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--gpu-memory", "48", "--offload", "never"),
            "1 x 1 would do with CINEVENT_OFFLOAD=auto, CINEVENT_WEIGHTS_DTYPE=float8",
        ),
        (
            ("--gpu-memory", "12.8"),
            "needs 13.2 GiB on each of 1 x 1 GPUs, which have 12.8; nodes x GPUs that fit: 1 x 3-8, 2 x 2-8",
        ),
        (
            ("--gpu-memory", "48", "--offload", "never"),
            "needs 65.8 GiB on each of 1 x 1 GPUs, which have 48; nodes x GPUs that fit: 1 x 2-8",
        ),
        (("--size", "1280x1280"), "/input/width: 1280 x 1280 is 1638400 pixels; wan2.2-t2v-a14b makes at most 921600"),
        (("--size", "1270x720"), "/input/width: 1270 is not a multiple of 16"),
        (("--num-frames", "80"), "/input/num_frames: num_frames is 80; allowed: 4k + 1, such as 77 or 81"),
    ],
)
def test_a_plan_that_is_impossible_is_one_line_and_exit_code_1(arguments: tuple[str, ...], words: str) -> None:
    done = cinevent("plan", "wan2.2-t2v-a14b", *arguments)

    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    assert words in done.err


def test_an_unknown_job_is_exit_code_1(system: System) -> None:
    done = system.cinevent("get", "j" + "a" * 25)

    assert (done.code, done.out) == (1, "")
    assert "404" in done.err


def test_dead_letters_are_listed_shown_and_driven_again(system: System) -> None:
    event = an_event("failed", job="j" + "d" * 25)
    bury(system, event_body=b"{}", subject=f"cinevent.default.{event.data['job']}.done.failed")
    [letter] = system.cinevent("dead", "list", "--json").json

    shown = system.cinevent("dead", "show", str(letter["sequence"]), "--json").json
    driven = system.cinevent("dead", "redrive", str(letter["sequence"]))

    assert (shown["reason"], shown["event"]) == ("HTTP 400: no", "{}")
    assert (driven.code, "notify-done" in driven.out) == (0, True)
    assert system.cinevent("dead", "show", str(letter["sequence"])).code == 1


def bury(system: System, *, event_body: bytes, subject: str) -> None:
    """Put a dead letter of notify's consumer into its stream, as the source does."""
    bus = Bus.open(Settings(nats_url=system.addresses["nats"]), is_client=True)
    facts = {"Reason": "HTTP 400: no", "Tries": "1", "Subject": subject, "Consumer": "notify-done"}
    headers = {f"Cinevent-Dead-{name}": value for name, value in facts.items()}
    bus.publish_bytes(dead_subject("notify-done", subject), headers, event_body)
    bus.close()


def test_the_doctor_finds_nothing_wrong_with_a_running_system(system: System, models: Path) -> None:
    env = {"CINEVENT_STORE_URL": f"file:{system.data / 'store'}", "CINEVENT_MODELS_DIR": str(models)}
    done = system.cinevent("doctor", env=env)

    verdicts = {line[13:25].strip(): line[:12].strip() for line in done.out.splitlines()}
    assert (done.code, done.err) == (0, "")
    assert verdicts == {
        **dict.fromkeys(("submit", "nats", "streams", "store", "weights"), "ok"),
        **dict.fromkeys(("sync", "webhooks", "cluster"), "not checked"),
    }
