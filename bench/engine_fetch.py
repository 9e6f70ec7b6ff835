"""How fast checked weights come from S3: our fetch against one plain stream of boto3, the same 256 MiB, in turns.

Ours has eight connections, notes each part in a journal with its CRC32 and compares every file with SHA256SUMS as soon
as it is there. Theirs is download_file with one connection, file after file, and the same comparison afterwards. The
figure is the median throughput of ours over theirs; a context line has theirs without the comparison. The S3 service is
moto's on the same machine and the folder is in memory where the system has such a place: the processors are the limit,
and the figure shows what journal and parts cost there. It does not show what many connections gain on a network. A file
is one part: moto copies the whole object for every part that it sends, which no other service does.
"""

import hashlib
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig

from engine.adapters.weights import ensure
from engine.contract.models import CATALOG
from engine.contract.settings import Settings
from tests.servers import accepts, free_port, wait_until

GOAL = 0.9
ROUNDS = 7
NUM_FILES = 8
FILE_BYTES = 32 * 2**20
ROW = CATALOG["tiny-t2v"]
PREFIX = f"models/{ROW.name}/"
MEMORY = Path("/dev/shm")  # noqa: S108  (a folder of its own within)
ONE_STREAM = TransferConfig(multipart_threshold=2**40, use_threads=False)


def main() -> int:
    port = free_port()
    os.environ.update({"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"})
    command = [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: accepts(port), timeout_s=60, what="moto listens")
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            ratio = measure(f"http://127.0.0.1:{port}", Path(folder))
    finally:
        server.kill()
        server.wait()
    print(f"context: boto3 {boto3.__version__}, python {platform.python_version()}, {os.cpu_count()} cores")
    print(f"engine_fetch {ratio:.2f} ratio >={GOAL} {'ok' if ratio >= GOAL else 'short'}")
    return 0 if ratio >= GOAL else 1


def measure(address: str, folder: Path) -> float:
    """Our median throughput over theirs."""
    client = boto3.client("s3", endpoint_url=address)
    sides = {
        "ours": ours(address, folder / "ours"),
        "theirs": theirs(client, folder / "theirs", sums=upload(client)),
        "unchecked": theirs(client, folder / "theirs", sums={}),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(ROUNDS):
        for side in sorted(sides, reverse=bool(turn % 2)):
            seconds[side].append(timed(sides[side]))
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    for side, median in medians.items():
        print(f"context: {side} {median:.2f} s, {NUM_FILES * FILE_BYTES / median / 1e6:.0f} MB/s")
    print(f"context: over theirs without a comparison {medians['unchecked'] / medians['ours']:.2f}")
    return medians["theirs"] / medians["ours"]


def upload(client: Any) -> dict[str, str]:
    """The checksums of the files."""
    client.create_bucket(Bucket="bench")
    sums = {}
    for number in range(NUM_FILES):
        data = random.Random(number).randbytes(FILE_BYTES)
        client.put_object(Bucket="bench", Key=f"{PREFIX}{number}", Body=data)
        sums[str(number)] = hashlib.sha256(data).hexdigest()
    text = "".join(f"{value}  {name}\n" for name, value in sums.items())
    client.put_object(Bucket="bench", Key=f"{PREFIX}model_index.json", Body=b"{}")
    client.put_object(Bucket="bench", Key=f"{PREFIX}SHA256SUMS", Body=text.encode())
    return sums


def ours(address: str, folder: Path) -> Callable[[], Path]:
    settings = Settings(models_dir=str(folder), models_url="s3://bench/models", s3_endpoint=address)

    def run() -> Path:
        ensure(ROW, settings)
        return folder

    return run


def theirs(client: Any, folder: Path, *, sums: dict[str, str]) -> Callable[[], Path]:
    def run() -> Path:
        folder.mkdir()
        for name in map(str, range(NUM_FILES)):
            client.download_file("bench", f"{PREFIX}{name}", str(folder / name), Config=ONE_STREAM)
        for name, value in sums.items():
            with (folder / name).open("rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == value
        return folder

    return run


def timed(run: Callable[[], Path]) -> float:
    """Seconds of one run, whose folder is gone afterwards."""
    started = time.perf_counter()
    folder = run()
    seconds = time.perf_counter() - started
    shutil.rmtree(folder)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
