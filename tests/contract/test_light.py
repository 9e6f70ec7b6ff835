"""The functions start light: nothing that they import, directly or not, is torch or its company."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import functions.{name}
heavy = {{"torch", "diffusers", "transformers", "numpy", "boto3", "kubernetes", "nats"}} & set(sys.modules)
sys.exit(", ".join(sorted(heavy)) or 0)
"""


@pytest.mark.parametrize("name", ["submit.app", "dispatch.app", "notify.app", "cli"])
def test_a_function_starts_without_heavy_libraries(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(name=name)], capture_output=True, text=True, timeout=30)

    assert (done.returncode, done.stderr) == (0, "")


LOCAL = """
import sys
from functions.dispatch.app import create_app
app = create_app({"CINEVENT_NATS_URL": "nats://127.0.0.1:1"})
app.extensions["deps"].close()
sys.exit("kubernetes" if "kubernetes" in sys.modules else 0)
"""


def test_the_local_launcher_loads_nothing_of_kubernetes() -> None:
    done = subprocess.run([sys.executable, "-c", LOCAL], capture_output=True, text=True, timeout=30)

    assert done.returncode == 0, done.stderr
