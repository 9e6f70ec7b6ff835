"""The README's snippets, run as they stand, with this system's addresses in place of the default ones."""

import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.system import System
from tests.servers import accepts, child, free_port, wait_until

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def snippet(name: str, system: System, *, hook_port: int) -> str:
    """The block after `<!-- test: name -->`, with addresses replaced."""
    found = re.search(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has no snippet {name}"
    addresses = {"http://127.0.0.1:8080": system.addresses["submit"], "nats://127.0.0.1:4222": system.addresses["nats"]}
    text = found[1].replace("127.0.0.1:9000", f"127.0.0.1:{hook_port}").replace("port=9000", f"port={hook_port}")
    for default, actual in addresses.items():
        text = text.replace(default, actual)
    return text


def test_producer_subscriber_and_receiver_work_together(system: System, tmp_path: Path) -> None:
    port = free_port()
    subscriber, receiver = (snippet(name, system, hook_port=port) for name in ("subscriber", "receiver"))
    env = {"WEBHOOK_SECRET": system.addresses["webhook_secret"]}
    with (
        child([sys.executable, "-c", subscriber], env={}, log=tmp_path / "subscriber") as listening,
        child([sys.executable, "-c", receiver], env=env, log=tmp_path / "receiver") as receiving,
    ):
        wait_until(lambda: accepts(port) and "listening" in listening.log.read_text(), what="both listen")
        producer = snippet("producer", system, hook_port=port)
        sent = subprocess.run(["bash", "-c", producer], capture_output=True, text=True, timeout=20, check=True)
        assert "202 ACCEPTED" in sent.stdout.upper()
        assert "Location: /api/v1/jobs/j" in sent.stdout
        wait_until(lambda: "job.completed.v1" in receiving.log.read_text(), timeout_s=60, what="the webhook comes")
        assert listening.process.wait(timeout=10) == 0

    heard = listening.log.read_text()
    assert all(f"io.cinevent.job.{name}.v1" in heard for name in ("requested", "launched", "progress", "completed"))


def test_every_page_that_the_readme_names_is_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_names_the_commands_of_the_makefile() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE)) <= targets
