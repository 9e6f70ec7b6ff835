"""`cinevent webhooks`: check a file of endpoints, see what became of deliveries, send them again. Over HTTP only."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.contract.address import refusal
from engine.contract.delivery import State
from engine.contract.endpoint import parse_endpoints
from engine.contract.errors import Invalid, Problem
from engine.contract.settings import Settings
from functions.client import Client
from functions.directory import read_file

_Run = Callable[[argparse.Namespace, Client], tuple[Any, str]]


def add(commands: Any) -> None:
    """Add the command to those of a parser."""
    hooks = commands.add_parser("webhooks", help="deliveries to webhooks, and their endpoints").add_subparsers(
        metavar="COMMAND", required=True
    )
    check = hooks.add_parser("check", help="say whether a file of endpoints can be used")
    check.set_defaults(command=_check)
    check.add_argument("file", type=Path)
    check.add_argument("--json", action="store_true", help="print JSON")
    listing = _command(hooks, "list", _list, "list deliveries, the newest first")
    listing.add_argument("--endpoint", help="of this one only")
    listing.add_argument("--state", choices=list(State), help="in this state only")
    listing.add_argument("--limit", type=int, default=20, help="how many (default: 20, at most 100)")
    listing.add_argument("--cursor", help="where the last list ended")
    _command(hooks, "job", _of_job, "list the deliveries of a job").add_argument("job")
    _command(hooks, "show", _one, "show a delivery with its attempts").add_argument("delivery")
    _command(hooks, "replay", _replay, "send a delivery again").add_argument("delivery")
    _command(hooks, "endpoints", _endpoints, "list the standing endpoints and how they do")
    recover = _command(hooks, "recover", _recover, "send again what failed at an endpoint")
    recover.add_argument("endpoint")
    recover.add_argument("--since", required=True, metavar="TIME", help="such as 2026-11-20T10:00:00Z")
    _command(hooks, "test", _test, "send a test to an endpoint").add_argument("endpoint")
    _command(hooks, "enable", _enable, "send to an endpoint again that was disabled").add_argument("endpoint")


def _command(commands: Any, name: str, run: _Run, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")

    def call(options: argparse.Namespace, settings: Settings) -> int:
        value, shown = run(options, Client(options.url or settings.public_url, key=settings.api_key))
        print(json.dumps(value, ensure_ascii=False) if options.json else shown)
        return 0

    command.set_defaults(command=call)
    command.add_argument("--url", help="of submit (default: CINEVENT_PUBLIC_URL or http://127.0.0.1:8080)")
    command.add_argument("--json", action="store_true", help="print JSON")
    return command


def _check(options: argparse.Namespace, settings: Settings) -> int:
    data = read_file(options.file)
    endpoints = parse_endpoints(data, tenant=settings.tenant, read=lambda name: Path(name).read_text())
    policy = settings.webhook_policy()
    problems = [
        Problem(pointer=f"/endpoints/{index}/url", rule="address", message=f"webhooks may not go there: {why}")
        for index, endpoint in enumerate(endpoints.values())
        if (why := refusal(endpoint.url, policy))
    ]
    if problems:
        raise Invalid(*problems)
    names = [endpoint.name for endpoint in endpoints.values()]
    found = f"{options.file}: {len(names)} endpoints, all of them usable: {', '.join(names)}"
    print(json.dumps({"endpoints": names}) if options.json else found)
    return 0


def _list(options: argparse.Namespace, client: Client) -> tuple[Any, str]:
    given = {name: getattr(options, name) for name in ("endpoint", "state", "limit", "cursor")}
    page = client.deliveries({name: str(value) for name, value in given.items() if value is not None})
    lines = [_line(delivery) for delivery in page["deliveries"]]
    if page["next_cursor"]:
        lines.append(f"more: --cursor {page['next_cursor']}")
    return page, "\n".join(lines) or "no deliveries"


def _of_job(options: argparse.Namespace, client: Client) -> tuple[Any, str]:
    found = client.deliveries_of(options.job)
    return found, "\n".join(_line(delivery) for delivery in found["deliveries"]) or "no deliveries"


def _one(options: argparse.Namespace, client: Client) -> tuple[Any, str]:
    found = client.delivery(options.delivery)
    return found, json.dumps(found, indent=2, ensure_ascii=False)


def _replay(options: argparse.Namespace, client: Client) -> tuple[Any, str]:
    return client.replay(options.delivery), f"{options.delivery} is sent again"


def _endpoints(_: argparse.Namespace, client: Client) -> tuple[Any, str]:
    found = client.endpoints()
    lines = [
        f"{each['name']:<32}  {each['status']['state'] if each['enabled'] else 'off':<9}  {each['url']}"
        for each in found["endpoints"]
    ]
    return found, "\n".join(lines) or "no standing endpoints"


def _recover(options: argparse.Namespace, client: Client) -> tuple[Any, str]:
    found = client.on_endpoint(options.endpoint, "recover", {"since": options.since})
    return found, f"{found['replayed']} deliveries are sent again"


def _test(options: argparse.Namespace, client: Client) -> tuple[Any, str]:
    found = client.on_endpoint(options.endpoint, "test")
    return found, f"a test goes to {options.endpoint}: cinevent webhooks show {found['delivery']}"


def _enable(options: argparse.Namespace, client: Client) -> tuple[Any, str]:
    return client.on_endpoint(options.endpoint, "enable"), f"{options.endpoint} is sent to again"


def _line(delivery: dict[str, Any]) -> str:
    last = delivery["attempts"][-1]
    said = f"HTTP {last['status']}" if last["status"] else last["error"]
    when = f"{last['time'][:19]}Z"
    return f"{delivery['id']}  {delivery['state']:<9}  {when}  {delivery['event']:<9}  {delivery['endpoint']}  {said}"
