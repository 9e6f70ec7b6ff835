"""The command line `cinevent`: a client over HTTP and NATS like any other, and `local`, which runs the whole system.

Errors are one line on stderr: exit code 2 for a wrong call, 1 for anything that did not work out, 0 else. Every command
that shows something takes --json: one JSON value per line, for programs.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from engine.adapters.bus import Bus
from engine.adapters.dead import DeadLetter, dead_letter, dead_letters, redrive
from engine.contract.errors import CineventError
from engine.contract.models import CATALOG
from engine.contract.request import PRIORITIES
from engine.contract.settings import Settings
from functions import admin, local, planning, webhooks
from functions.client import Client
from functions.doctor import report as doctor
from functions.watch import watch

_INPUTS = {
    "negative_prompt": (str, "what the video should not show"),
    "width": (int, "pixels"),
    "height": (int, "pixels"),
    "num_frames": (int, "4k + 1"),
    "fps": (int, "frames per second"),
    "steps": (int, "denoising steps"),
    "guidance_scale": (float, "how strictly to follow the prompt"),
    "guidance_scale_2": (float, "the same, of the low-noise expert"),
    "flow_shift": (float, "where on the noise schedule the steps lie"),
    "sampler": (str, "how a step follows from the last: unipc, euler, dpm++"),
    "cache": (str, "what of earlier steps stands in for later ones: none, taylorseer, magcache"),
    "preset": (str, "options that belong together, such as lightning: 4 steps"),
    "seed": (int, "the same seed gives the same video"),
    "crf": (int, "quality of the mp4: 1 (best, large) to 51"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        settings = Settings.read(os.environ)
        command: Callable[[argparse.Namespace, Settings], int] = options.command
        return command(options, settings)
    except CineventError as error:
        print(f"cinevent: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe has seen enough; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the call, and end with exit code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    """All commands and options; a test freezes their names."""
    parser = Parser(prog="cinevent", description="Video generation on your own GPUs.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_local(commands)
    _add_submit(commands)
    for name, run, text in (
        ("get", _get, "show one job"),
        ("watch", _watch, "follow a job until it ends, over NATS"),
        ("cancel", _cancel, "ask to stop a job"),
        ("retry", _retry, "ask again for what a job was to make, as a new job"),
        ("delete", _delete, "erase a job that has ended, with its video"),
    ):
        _client(commands, name, run, text).add_argument("job", help="the id that submit printed")
    listing = _client(commands, "list", _list, "list jobs, the newest first")
    listing.add_argument("--limit", type=int, default=20, help="how many (default: 20, at most 100)")
    listing.add_argument("--cursor", help="where the last list ended")
    video = _client(commands, "video", _video, "download the video of a finished job")
    video.add_argument("job")
    video.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: JOB.mp4")
    planning.add(commands)
    doctor.add(commands)
    admin.add(commands)
    webhooks.add(commands)
    _add_dead(commands)
    return parser


def _add_local(commands: Any) -> None:
    command = commands.add_parser(
        "local",
        help="run the whole system on this machine",
        description="Run nats-server, the functions, their sources and the engine on this machine until Ctrl-C.",
    )
    command.set_defaults(command=_local)
    command.add_argument(
        "--data", type=Path, default=Path(".cinevent"), help="folder that keeps everything (default: .cinevent)"
    )
    command.add_argument("--port", type=int, default=8080, help="of submit; 0: any (default: 8080)")
    command.add_argument("--nats-port", type=int, default=4222, help="of nats-server; 0: any (default: 4222)")
    command.add_argument("--models", type=Path, help="folder with models (default: DATA/models, with the tiny ones)")
    command.add_argument("--processes", type=int, default=1, help="engine processes per job (default: 1)")
    command.add_argument("--json", action="store_true", help="print the addresses as JSON")
    command.add_argument(
        "--ready-file", type=Path, metavar="FILE", help="write the addresses here as JSON once all is ready"
    )


def _add_submit(commands: Any) -> None:
    command = _client(commands, "submit", _submit, "ask for a video")
    command.add_argument("prompt", nargs="?", help="what the video shows; or use --file")
    command.add_argument("--model", default="tiny-t2v", choices=CATALOG)
    for name, (kind, text) in _INPUTS.items():
        command.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    command.add_argument("--lora", type=_lora, action="append", metavar="NAME[=SCALE]", help="a LoRA beside the model")
    command.add_argument("--image", type=Path, metavar="FILE", help="the picture that the video starts from")
    command.add_argument("--priority", choices=PRIORITIES)
    command.add_argument("--webhook", metavar="URL", help="tell this address how it ended")
    command.add_argument("--key", help="idempotency key: the same key never makes a second job")
    command.add_argument("--file", metavar="FILE", help="the whole request as JSON; - reads standard input")
    command.add_argument("--watch", action="store_true", help="follow the job until it ends")


def _add_dead(commands: Any) -> None:
    dead = commands.add_parser("dead", help="messages that could not be delivered").add_subparsers(
        metavar="COMMAND", required=True
    )
    _client(dead, "list", _dead_list, "list dead letters, the oldest first")
    for name, run, text in (
        ("show", _dead_show, "show one dead letter with its event"),
        ("redrive", _dead_redrive, "deliver a dead letter again"),
    ):
        _client(dead, name, run, text).add_argument("letter", type=int, help="its number in the list")


def _client(commands: Any, name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    command.set_defaults(command=run)
    command.add_argument("--url", help="of submit (default: CINEVENT_PUBLIC_URL or http://127.0.0.1:8080)")
    command.add_argument("--nats", help="of NATS (default: CINEVENT_NATS_URL or nats://127.0.0.1:4222)")
    command.add_argument("--json", action="store_true", help="print JSON")
    return command


def _local(options: argparse.Namespace, settings: Settings) -> int:
    return local.run(
        local.Options(
            data=options.data,
            port=options.port,
            nats_port=options.nats_port,
            models=options.models,
            num_processes=options.processes,
            ready_file=options.ready_file,
            as_json=options.json,
        ),
        settings,
    )


def _submit(options: argparse.Namespace, settings: Settings) -> int:
    client = _http(options, settings)
    request = _request(options)
    if options.image:
        request["input"]["image"] = client.upload(options.image)
    job = client.submit(request, key=options.key)
    if not options.watch:
        _show(options, job, job["id"])
        return 0
    return _follow(options, settings, job["id"])


def _request(options: argparse.Namespace) -> Any:
    if options.file and options.image:
        raise CineventError("--image goes with a prompt; a request from a file names its upload in input.image")
    if options.file:
        return _read_json(options.file)
    if not options.prompt:
        raise CineventError("submit needs a prompt, or a request with --file")
    given = {name: value for name in _INPUTS if (value := getattr(options, name)) is not None}
    if options.lora:
        given["loras"] = options.lora
    more = {"priority": options.priority, "webhook": {"url": options.webhook} if options.webhook else None}
    return {
        "model": options.model,
        "input": {"prompt": options.prompt, **given},
        **{name: value for name, value in more.items() if value is not None},
    }


def _lora(text: str) -> dict[str, Any]:
    name, _, scale = text.partition("=")
    try:
        return {"name": name, **({"scale": float(scale)} if scale else {})}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{scale!r} is no scale; write NAME or NAME=0.8") from error


def _read_json(name: str) -> Any:
    try:
        return json.loads(sys.stdin.read() if name == "-" else Path(name).read_text())
    except OSError as error:
        raise CineventError(f"cannot read {name}: {error.strerror}") from error
    except ValueError as error:
        raise CineventError(f"{name} is not JSON: {error}") from error


def _get(options: argparse.Namespace, settings: Settings) -> int:
    job = _http(options, settings).get(options.job)
    _show(options, job, json.dumps(job, indent=2, ensure_ascii=False))
    return 0


def _list(options: argparse.Namespace, settings: Settings) -> int:
    page = _http(options, settings).page(limit=options.limit, cursor=options.cursor)
    lines = [_line(job) for job in page["jobs"]]
    if page["next_cursor"]:
        lines.append(f"more: --cursor {page['next_cursor']}")
    _show(options, page, "\n".join(lines) or "no jobs")
    return 0


def _line(job: dict[str, Any]) -> str:
    when, prompt = f"{job['created_at'][:19]}Z", repr(job["input"]["prompt"][:50])
    return f"{job['id']}  {job['state']:<10}  {when}  {job['model']:<16}  {prompt}"


def _watch(options: argparse.Namespace, settings: Settings) -> int:
    return _follow(options, settings, options.job)


def _follow(options: argparse.Namespace, settings: Settings, job: str) -> int:
    with closing(_bus(options, settings)) as bus:
        state = watch(bus, _http(options, settings), job, tenant=settings.tenant, as_json=options.json)
    return 0 if state == "COMPLETED" else 1


def _cancel(options: argparse.Namespace, settings: Settings) -> int:
    job = _http(options, settings).cancel(options.job)
    _show(options, job, f"{job['id']} {job['state']} {job['stage']}")
    return 0


def _retry(options: argparse.Namespace, settings: Settings) -> int:
    job = _http(options, settings).retry(options.job)
    _show(options, job, job["id"])
    return 0


def _delete(options: argparse.Namespace, settings: Settings) -> int:
    _http(options, settings).delete(options.job)
    _show(options, {"id": options.job, "deleted": True}, f"{options.job} is erased")
    return 0


def _video(options: argparse.Namespace, settings: Settings) -> int:
    target = options.output or Path(f"{options.job}.mp4")
    size = _http(options, settings).video(options.job, target)
    _show(options, {"path": str(target), "size_bytes": size}, f"{target} ({size} bytes)")
    return 0


def _dead_list(options: argparse.Namespace, settings: Settings) -> int:
    with closing(_bus(options, settings)) as bus:
        letters = list(dead_letters(bus, limit=1000))
    text = "\n".join(f"{d.sequence:>6}  {d.at[:19]}Z  {d.consumer:<16}  {d.subject}  {d.reason}" for d in letters)
    _show(options, [_letter_json(letter) for letter in letters], text or "no dead letters")
    return 0


def _dead_show(options: argparse.Namespace, settings: Settings) -> int:
    with closing(_bus(options, settings)) as bus:
        letter = dead_letter(bus, options.letter)
    whole = {**_letter_json(letter), "event": letter.body.decode(errors="replace")}
    _show(options, whole, "\n".join(f"{name}: {value}" for name, value in whole.items()))
    return 0


def _dead_redrive(options: argparse.Namespace, settings: Settings) -> int:
    with closing(_bus(options, settings)) as bus:
        consumer = redrive(bus, options.letter)
    _show(options, {"letter": options.letter, "consumer": consumer}, f"{options.letter} goes to {consumer} again")
    return 0


def _letter_json(letter: DeadLetter) -> dict[str, Any]:
    names = ("sequence", "at", "consumer", "subject", "tries", "reason")
    return {name: getattr(letter, name) for name in names}


def _http(options: argparse.Namespace, settings: Settings) -> Client:
    return Client(options.url or settings.public_url, key=settings.api_key)


def _bus(options: argparse.Namespace, settings: Settings) -> Bus:
    return Bus.open(replace(settings, nats_url=options.nats or settings.nats_url), is_client=True)


def _show(options: argparse.Namespace, value: Any, text: str) -> None:
    print(json.dumps(value, ensure_ascii=False) if options.json else text)


if __name__ == "__main__":
    sys.exit(main())
