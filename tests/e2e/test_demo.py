"""`make demo` as its user sees it."""

import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.system import left


def test_the_demo_makes_a_video_says_where_it_is_and_leaves_nothing_running(models: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "models").parent.mkdir()
    (data / "models").symlink_to(models)

    command = [sys.executable, "-m", "functions.demo", "a red kite", "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)

    assert done.returncode == 0, done.stderr
    assert "signature verified by standardwebhooks" in done.stdout
    assert re.search(r"denoising +\[#*\.*\] +\d+ %  step \d+/20", done.stdout)
    [video] = [Path(name) for name in re.findall(r"\S+\.mp4", done.stdout)]
    assert video.stat().st_size > 1000
    assert left(data) == []
