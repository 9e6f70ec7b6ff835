"""How fast weights come from S3: our fetch against one plain stream of boto3 per file, the same 256 MiB, in turns.

Ours reads parts on eight connections, notes each part in a journal, compares every file with SHA256SUMS and waits until
the disk has it. Theirs is download_file with one connection, file after file, and does none of that. The figure is the
median throughput of ours over theirs. The S3 service is moto's on the same machine: it copies the whole object for each
part that it sends, and the processors are the limit. So the figure shows that parts, checks and journal cost nothing
that could be seen here; it does not show what many connections gain on a network, nor which part size is best on one.
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

from engine.adapters.fetch import Limits
from engine.adapters.weights import ensure
from engine.contract.models import CATALOG
from engine.contract.settings import Settings
from tests.servers import accepts, free_port, wait_until

GOAL = 0.9
ROUNDS = 7
NUM_FILES = 4
FILE_BYTES = 64 * 2**20
ROW = CATALOG["tiny-t2v"]
PREFIX = f"models/{ROW.name}/"
# Other numbers of connections and sizes of parts, in MiB, for comparison.
OTHERS = ((1, 32), (4, 32), (16, 32), (8, 8), (8, 64))
ONE_STREAM = TransferConfig(multipart_threshold=2**40, use_threads=False)


def main() -> int:
    port = free_port()
    os.environ.update({"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"})
    command = [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: accepts(port), timeout_s=60, what="moto listens")
        with tempfile.TemporaryDirectory() as folder:
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
    upload(client)
    sides = {"ours": ours(address, folder / "ours"), "theirs": theirs(client, folder / "theirs")}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(ROUNDS):
        for side in sorted(sides, reverse=bool(turn % 2)):
            seconds[side].append(timed(sides[side]))
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    for side, median in medians.items():
        print(f"context: {side} {median:.2f} s, {NUM_FILES * FILE_BYTES / median / 1e6:.0f} MB/s")
    others = {
        f"ours with {number} x {part_mib} MiB": ours(
            address, folder / "ours", Limits(num_connections=number, part_bytes=part_mib * 2**20)
        )
        for number, part_mib in OTHERS
    }
    others["theirs with its 10 x 8 MiB"] = theirs(client, folder / "theirs", TransferConfig())
    for name, run in others.items():
        best = min(timed(run) for _ in range(3))
        print(f"context: {name} {NUM_FILES * FILE_BYTES / best / 1e6:.0f} MB/s at best")
    return medians["theirs"] / medians["ours"]


def upload(client: Any) -> None:
    client.create_bucket(Bucket="bench")
    sums = ""
    for number in range(NUM_FILES):
        data = random.Random(number).randbytes(FILE_BYTES)
        client.put_object(Bucket="bench", Key=f"{PREFIX}{number}", Body=data)
        sums += f"{hashlib.sha256(data).hexdigest()}  {number}\n"
    client.put_object(Bucket="bench", Key=f"{PREFIX}model_index.json", Body=b"{}")
    client.put_object(Bucket="bench", Key=f"{PREFIX}SHA256SUMS", Body=sums.encode())


def ours(address: str, folder: Path, limits: Limits | None = None) -> Callable[[], Path]:
    settings = Settings(models_dir=str(folder), models_url="s3://bench/models", s3_endpoint=address)

    def run() -> Path:
        ensure(ROW, settings, limits=limits or Limits())
        return folder

    return run


def theirs(client: Any, folder: Path, config: TransferConfig = ONE_STREAM) -> Callable[[], Path]:
    def run() -> Path:
        folder.mkdir()
        for number in range(NUM_FILES):
            client.download_file("bench", f"{PREFIX}{number}", str(folder / str(number)), Config=config)
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
