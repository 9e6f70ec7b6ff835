"""Where weights come from: a folder, an S3 prefix, a hub. Real servers, real processes, real kills."""

import fcntl
import hashlib
import os
import random
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config

from engine.adapters.fetch import Limits
from engine.adapters.s3 import Bucket
from engine.adapters.weights import ensure
from engine.contract.errors import CineventError, JobFailed, Unavailable
from engine.contract.models import CATALOG
from engine.contract.settings import Settings
from tests.relay import Asked, Hub, Relay
from tests.servers import Child, child, free_port, wait_until

ROW = CATALOG["tiny-t2v"]
LIMITS = Limits(num_connections=2, part_bytes=100_000)
BIG = "transformer/diffusion_pytorch_model.safetensors"
FILES = {
    "model_index.json": b"{}",
    "scheduler/empty": b"",
    BIG: random.Random(1).randbytes(1_050_000),
    "vae/diffusion_pytorch_model.safetensors": random.Random(2).randbytes(200_000),
}
SUMS = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in FILES.items()).encode()
NUM_PARTS = 11 + 2 + 1
# A process that wants the weights, as the engine does.
WANT = """
import logging, os
from engine.adapters.weights import ensure
from engine.contract.settings import Settings
from tests.contract.test_weights import LIMITS, ROW
logging.basicConfig(level=logging.INFO)
ensure(ROW, Settings.read(os.environ), limits=LIMITS)
"""


@dataclass(frozen=True)
class Source:
    """A model in a bucket, behind a relay, and the settings of whoever wants it."""

    client: Any
    bucket: str
    relay: Relay
    settings: Settings

    @property
    def folder(self) -> Path:
        return Path(self.settings.models_dir) / ROW.name

    def put(self, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            self.client.put_object(Bucket=self.bucket, Key=self.key(name), Body=data)

    def key(self, name: str) -> str:
        return f"all/models/{ROW.name}/{name}"

    def ensure(self, **options: Any) -> Path:
        return ensure(ROW, self.settings, limits=LIMITS, **options)


@pytest.fixture
def source(s3_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    bucket = f"bucket-{uuid.uuid4()}"
    client = boto3.client("s3", endpoint_url=s3_address)
    client.create_bucket(Bucket=bucket)
    relay = Relay(s3_address)
    url = f"s3://{bucket}/all/models"
    settings = Settings(models_dir=str(tmp_path / "models"), models_url=url, s3_endpoint=relay.url)
    made = Source(client=client, bucket=bucket, relay=relay, settings=settings)
    made.put({**FILES, "SHA256SUMS": SUMS})
    # A neighbour whose name begins the same way.
    client.put_object(Bucket=bucket, Key=f"all/models/{ROW.name}-large/other", Body=b"x")
    yield made
    relay.close()


@pytest.fixture
def client(s3_address: str, source: Source) -> Any:
    """One that adds no checksum of its own choice."""
    config = Config(request_checksum_calculation="when_required")
    return boto3.client("s3", endpoint_url=s3_address, config=config)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def named(error: CineventError) -> str:
    text = str(error)
    assert "\n" not in text
    return text


class TestFolder:
    def test_a_folder_that_is_there_is_used_and_nothing_is_asked(self, source: Source) -> None:
        source.folder.mkdir(parents=True)
        (source.folder / "model_index.json").write_text("{}")

        assert source.ensure() == source.folder
        assert source.relay.parts == []
        assert sorted(path.name for path in source.folder.parent.iterdir()) == [ROW.name]

    def test_a_missing_folder_is_named_with_the_setting_that_would_help(self, tmp_path: Path) -> None:
        with pytest.raises(JobFailed) as caught:
            ensure(ROW, Settings(models_dir=str(tmp_path)))

        assert caught.value.code == "model_load_failed"
        assert not caught.value.retryable
        assert f"{tmp_path / ROW.name} is missing" in named(caught.value)
        assert "CINEVENT_MODELS_URL" in named(caught.value)

    def test_a_folder_without_an_index_is_left_alone(self, source: Source) -> None:
        source.folder.mkdir(parents=True)
        (source.folder / "mine").write_text("")

        with pytest.raises(JobFailed, match=r"model_index\.json is missing"):
            source.ensure()
        assert content(source.folder) == {"mine": b""}

    def test_a_place_that_cannot_be_written_is_named(self, source: Source, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        settings = replace(source.settings, models_dir=str(tmp_path / "file" / "models"))

        with pytest.raises(JobFailed, match="file/models cannot be written"):
            ensure(ROW, settings, limits=LIMITS)


class TestBucket:
    def test_what_is_fetched_is_what_was_put(self, source: Source) -> None:
        heard: list[tuple[int, int]] = []

        folder = source.ensure(told=lambda done, total: heard.append((done, total)))

        assert content(folder) == {**FILES, "SHA256SUMS": SUMS}
        assert heard[0][1] == sum(map(len, FILES.values())) + len(SUMS)
        assert sorted(path.name for path in folder.parent.iterdir()) == [f".{ROW.name}.lock", ROW.name]
        ranges = [asked.range for asked in source.relay.parts if BIG in asked.path]
        assert sorted(ranges, key=len)[0] == "bytes=0-99999"
        assert len(set(ranges)) == 11

    def test_a_killed_fetch_goes_on_where_it_was(self, source: Source, tmp_path: Path) -> None:
        held, lock = threading.Event(), threading.Lock()
        passed: list[Asked] = []

        def hold_after_six(asked: Asked) -> None:
            with lock:
                passed.append(asked)
                is_held = BIG in asked.path and sum(BIG in one.path for one in passed) > 6
            if is_held:
                held.wait(60)

        source.relay.before = hold_after_six
        with child([sys.executable, "-c", WANT], env=source.settings.environ(), log=tmp_path / "log") as run:
            # Both connections wait for a part: the six before them are on the disk.
            wait_until(lambda: sum(BIG in one.path for one in passed) == 8, timeout_s=60, what=run.log.read_text())
            run.kill()
        held.set()
        done = {(asked.path, asked.range) for asked in source.relay.parts if BIG in asked.path}
        source.relay.before = lambda _: None
        before = len(source.relay.parts)
        assert not source.folder.exists()

        source.ensure()

        assert content(source.folder) == {**FILES, "SHA256SUMS": SUMS}
        again = [(asked.path, asked.range) for asked in source.relay.parts[before:] if BIG in asked.path]
        assert len(again) == 11 - 6
        assert len(done & set(again)) == 2

    def test_a_part_that_the_disk_lost_is_read_again(self, source: Source) -> None:
        source.put({"SHA256SUMS": SUMS + b"0" * 64 + b"  vae/other\n", "vae/other": b"x"})
        with pytest.raises(JobFailed, match="vae/other is damaged"):
            source.ensure()
        partial = source.folder.with_name(f".{ROW.name}.partial")
        with (partial / BIG).open("r+b") as file:
            file.seek(500_000)
            file.write(bytes(10))
        source.put({"SHA256SUMS": SUMS})
        source.client.delete_object(Bucket=source.bucket, Key=source.key("vae/other"))
        before = len(source.relay.parts)

        assert content(source.ensure()) == {**FILES, "SHA256SUMS": SUMS}
        again = [asked.range for asked in source.relay.parts[before:] if "SHA256SUMS" not in asked.path]
        assert again == ["bytes=500000-599999"]

    def test_of_two_processes_one_fetches_and_one_waits(self, source: Source, tmp_path: Path) -> None:
        go_on = threading.Event()
        source.relay.before = lambda _: go_on.wait(60)

        def start(name: str) -> Any:
            return child([sys.executable, "-c", WANT], env=source.settings.environ(), log=tmp_path / name)

        with start("a") as a, start("b") as b:
            runs: tuple[Child, Child] = (a, b)
            wait_until(
                lambda: any("waits for process" in run.log.read_text() for run in runs), timeout_s=60, what="one waits"
            )
            go_on.set()
            assert [run.process.wait(timeout=100) for run in runs] == [0, 0]

        assert content(source.folder) == {**FILES, "SHA256SUMS": SUMS}
        # One read more: of SHA256SUMS itself, before the files.
        assert len(source.relay.parts) == NUM_PARTS + 2

    def test_a_holder_without_progress_is_not_waited_for_without_end(self, source: Source) -> None:
        source.folder.parent.mkdir()
        with source.folder.with_name(f".{ROW.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)

            with pytest.raises(Unavailable, match=r"made no progress for 0\.2 s"):
                source.ensure(patience_s=0.2)

    def test_a_wrong_checksum_names_the_file_after_one_more_try(self, source: Source) -> None:
        source.put({"SHA256SUMS": SUMS.replace(hashlib.sha256(FILES[BIG]).hexdigest().encode(), b"0" * 64)})

        with pytest.raises(JobFailed) as caught:
            source.ensure()

        assert caught.value.code == "model_load_failed"
        assert f"s3://{source.bucket}/{source.key(BIG)} is damaged: its sha256 is not 000" in named(caught.value)
        assert not source.folder.exists()
        assert [sum(BIG in asked.path and asked.range.startswith("bytes=0-") for asked in source.relay.parts)] == [2]

    @pytest.mark.parametrize(
        ("sums", "why"),
        [
            (SUMS + b"0" * 64 + b"  vae/gone\n", "vae/gone is missing; SHA256SUMS has it"),
            (b"hello\n", "SHA256SUMS cannot"),
        ],
    )
    def test_sums_that_do_not_fit_are_told(self, source: Source, sums: bytes, why: str) -> None:
        source.put({"SHA256SUMS": sums})

        with pytest.raises(JobFailed, match=why):
            source.ensure()
        assert not source.folder.exists()

    def test_without_sums_damage_on_the_way_is_found_by_what_s3_knows(self, source: Source) -> None:
        source.client.delete_object(Bucket=source.bucket, Key=source.key("SHA256SUMS"))
        damaged: list[Asked] = []

        def damage_once(asked: Asked, data: bytes) -> bytes:
            if BIG in asked.path and not damaged:
                damaged.append(asked)
                return bytes(100) + data[100:]
            return data

        source.relay.change = damage_once

        assert content(source.ensure()) == FILES
        assert damaged

    def test_an_answer_that_ends_early_is_asked_for_again(self, source: Source) -> None:
        cut: list[Asked] = []

        def cut_once(asked: Asked, data: bytes) -> bytes:
            if BIG in asked.path and not cut:
                cut.append(asked)
                return data[:1000]
            return data

        source.relay.change = cut_once

        assert content(source.ensure()) == {**FILES, "SHA256SUMS": SUMS}
        assert sum(asked.range == cut[0].range and BIG in asked.path for asked in source.relay.parts) == 2

    def test_an_object_that_is_replaced_meanwhile_is_read_from_its_start(self, source: Source) -> None:
        new = random.Random(3).randbytes(900_000)
        sums = SUMS.replace(hashlib.sha256(FILES[BIG]).hexdigest().encode(), hashlib.sha256(new).hexdigest().encode())
        reads: list[Asked] = []
        lock = threading.Lock()

        def replace_at_the_third_part(asked: Asked) -> None:
            with lock:
                reads.append(asked)
                if BIG in asked.path and sum(BIG in one.path for one in reads) == 3:
                    source.put({BIG: new, "SHA256SUMS": sums})

        source.relay.before = replace_at_the_third_part

        assert content(source.ensure()) == {**FILES, BIG: new, "SHA256SUMS": sums}

    def test_an_object_that_does_not_stay_is_told_and_may_heal(self, source: Source) -> None:
        source.client.delete_object(Bucket=source.bucket, Key=source.key("SHA256SUMS"))
        seeds = iter(range(1000))

        def replace_always(asked: Asked) -> None:
            if BIG in asked.path and not asked.range.startswith("bytes=0-"):
                source.put({BIG: random.Random(next(seeds)).randbytes(1_050_000)})

        source.relay.before = replace_always

        with pytest.raises(Unavailable, match=f"{BIG} was replaced while it was read"):
            source.ensure()
        assert not source.folder.exists()

    def test_a_prefix_with_nothing_is_named(self, source: Source) -> None:
        settings = replace(source.settings, models_url=f"s3://{source.bucket}/nothing/")

        with pytest.raises(JobFailed, match=f"nothing below s3://{source.bucket}/nothing/{ROW.name}/"):
            ensure(ROW, settings, limits=LIMITS)

    def test_a_service_out_of_reach_may_heal(self, source: Source) -> None:
        settings = replace(source.settings, s3_endpoint=f"http://127.0.0.1:{free_port()}")

        with pytest.raises(Unavailable, match=source.bucket):
            ensure(ROW, settings, limits=LIMITS)

    def test_a_disk_that_is_too_small_is_told_before_anything_is_read(self, source: Source) -> None:
        with pytest.raises(JobFailed, match=r"GB free; .* are needed, .*CINEVENT_MODELS_DIR"):
            ensure(ROW, source.settings, limits=replace(LIMITS, reserve_bytes=2**60))

        assert [asked.path for asked in source.relay.parts if "SHA256SUMS" not in asked.path] == []

    def test_a_name_that_leads_elsewhere_is_refused(self, source: Source, tmp_path: Path) -> None:
        source.put({"../../../outside": b"x"})

        with pytest.raises(JobFailed):
            source.ensure()
        assert not (tmp_path / "outside").exists()


class TestChecksum:
    """What S3 knows of an object is used where it is known how it was computed."""

    @pytest.mark.parametrize(
        ("options", "algorithm"),
        [
            ({}, "md5"),
            ({"ChecksumAlgorithm": "SHA256"}, "sha256"),
            ({"ChecksumAlgorithm": "CRC32"}, "crc32"),
            ({"ServerSideEncryption": "aws:kms"}, None),
        ],
    )
    def test_the_checksum_of_an_object_is_found(
        self, source: Source, client: Any, tmp_path: Path, options: dict[str, str], algorithm: str | None
    ) -> None:
        client.put_object(Bucket=source.bucket, Key="one/file", Body=FILES[BIG], **options)

        self.check(source, tmp_path, algorithm)

    def test_the_checksum_of_an_upload_in_parts_is_found(self, source: Source, client: Any, tmp_path: Path) -> None:
        path = tmp_path / "upload"
        path.write_bytes(FILES[BIG] * 12)
        config = TransferConfig(multipart_threshold=5 * 2**20, multipart_chunksize=5 * 2**20)
        client.upload_file(str(path), source.bucket, "one/file", Config=config)

        self.check(source, tmp_path, "md5", data=FILES[BIG] * 12)

    def check(self, source: Source, tmp_path: Path, algorithm: str | None, data: bytes = FILES[BIG]) -> None:
        bucket = Bucket(source.bucket, endpoint=source.settings.s3_endpoint, num_connections=1)
        found = bucket.checksum(bucket.list("one/")[0])

        assert (found.algorithm if found else None) == algorithm
        path = tmp_path / "file"
        for value, is_right in ((data, True), (data[:-1] + b"x", False)):
            path.write_bytes(value)
            assert found is None or found.holds(path) is is_right


class TestHub:
    REPO = CATALOG["wan2.2-ti2v-5b"]

    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
        hub = Hub(self.REPO.hub, FILES, lfs={BIG})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        # As the engine has it.
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        yield hub
        hub.close()

    def want(self, tmp_path: Path, url: str = "hub") -> Path:
        return ensure(self.REPO, Settings(models_dir=str(tmp_path / "models"), models_url=url), limits=LIMITS)

    def test_a_repository_becomes_a_folder(self, hub: Hub, tmp_path: Path) -> None:
        folder = self.want(tmp_path)

        assert content(folder) == FILES
        assert sorted(hub.downloads) == sorted(Path(name).name for name, data in FILES.items() if data)
        assert folder == tmp_path / "models" / self.REPO.name
        assert os.environ["HF_HUB_OFFLINE"] == "1"

    def test_a_file_that_is_not_what_the_hub_says_is_named(self, hub: Hub, tmp_path: Path) -> None:
        hub.served[BIG] = bytes(len(FILES[BIG]))

        with pytest.raises(JobFailed, match=f"{BIG} is not what the hub says"):
            self.want(tmp_path)
        assert hub.downloads.count(Path(BIG).name) >= 2

        hub.served[BIG] = FILES[BIG]
        assert content(self.want(tmp_path)) == FILES

    def test_a_hub_that_does_not_work_is_named_and_may_heal(self, hub: Hub, tmp_path: Path) -> None:
        """The library itself takes what is in the folder, whatever that is, when the hub does not answer."""
        partial = tmp_path / "models" / f".{self.REPO.name}.partial"
        partial.mkdir(parents=True)
        (partial / "model_index.json").write_text("{}")
        hub.status = 503

        with pytest.raises(Unavailable) as caught:
            self.want(tmp_path)

        assert f"{self.REPO.hub} at main cannot be fetched" in named(caught.value)
        assert "CINEVENT_MODELS_URL" in named(caught.value)
        assert "503" in named(caught.value)

    def test_a_repository_that_is_not_there_is_named_for_good(self, hub: Hub, tmp_path: Path) -> None:
        row = replace(self.REPO, hub="nobody/nothing")

        with pytest.raises(JobFailed, match="nobody/nothing at v9 cannot be fetched"):
            ensure(row, Settings(models_dir=str(tmp_path), models_url="hub@v9"), limits=LIMITS)
        assert hub.downloads == []

    def test_a_tiny_model_is_on_no_hub(self, tmp_path: Path) -> None:
        with pytest.raises(JobFailed, match="tiny-t2v is on no hub"):
            ensure(ROW, Settings(models_dir=str(tmp_path), models_url="hub"))
