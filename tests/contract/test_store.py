"""What every store promises; the same tests for a directory and for a bucket."""

import hashlib
import os
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from engine.adapters.store import Store, open_store
from engine.contract.errors import NotFound, Unavailable
from engine.contract.settings import Settings
from tests.servers import free_port

KEY = "default/j1/a1/video.mp4"


@dataclass(frozen=True)
class Place:
    """Where a kind of store can be, and where it cannot."""

    settings: Settings
    missing: Settings
    """A place that is not there and cannot be made."""
    unreachable: Settings


@pytest.fixture
def directory(tmp_path: Path) -> Place:
    (tmp_path / "file").write_bytes(b"")
    here, nowhere = (Settings(store_url=f"file:{tmp_path / name}") for name in ("store", "file/store"))
    return Place(settings=here, missing=nowhere, unreachable=nowhere)


@pytest.fixture
def bucket(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    name = f"bucket-{uuid.uuid4()}"
    boto3.client("s3", endpoint_url=s3_address).create_bucket(Bucket=name)
    url = f"s3://{name}/some/prefix"
    return Place(
        settings=Settings(store_url=url, s3_endpoint=s3_address),
        missing=Settings(store_url=f"s3://no-{name}", s3_endpoint=s3_address),
        unreachable=Settings(store_url=url, s3_endpoint=f"http://127.0.0.1:{free_port()}"),
    )


@pytest.fixture(params=["directory", "bucket"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def store(place: Place) -> Store:
    return open_store(place.settings)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    """Makes a local file with these bytes."""

    def write(data: bytes) -> Path:
        path = tmp_path / hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        return path

    return write


class TestStore:
    """The promises of every store."""

    def test_what_was_put_is_read(self, store: Store, file: Callable[[bytes], Path]) -> None:
        store.put(KEY, file(b"a video"), content_type="video/mp4")

        assert store.read(KEY) == b"a video"

    def test_an_artifact_opens_as_a_seekable_file(self, store: Store, file: Callable[[bytes], Path]) -> None:
        store.put(KEY, file(b"0123456789"), content_type="video/mp4")

        with store.open(KEY) as data:
            data.seek(7)
            assert data.read() == b"789"
            data.seek(0)
            assert data.read(2) == b"01"

    def test_a_large_artifact_is_read_whole(self, store: Store, file: Callable[[bytes], Path]) -> None:
        large = bytes(range(256)) * 40_000
        store.put(KEY, file(large), content_type="video/mp4")

        assert store.read(KEY) == large

    def test_an_empty_artifact_is_one(self, store: Store, file: Callable[[bytes], Path]) -> None:
        store.put(KEY, file(b""), content_type="application/json")

        assert store.read(KEY) == b""

    def test_a_second_put_replaces_the_first(self, store: Store, file: Callable[[bytes], Path]) -> None:
        store.put(KEY, file(b"a long first one"), content_type="video/mp4")
        store.put(KEY, file(b"second"), content_type="video/mp4")

        assert store.read(KEY) == b"second"

    def test_the_local_file_stays(self, store: Store, file: Callable[[bytes], Path]) -> None:
        path = file(b"a video")

        store.put(KEY, path, content_type="video/mp4")

        assert path.read_bytes() == b"a video"

    def test_a_second_store_of_the_same_place_has_it(
        self, store: Store, place: Place, file: Callable[[bytes], Path]
    ) -> None:
        store.put(KEY, file(b"a video"), content_type="video/mp4")

        assert open_store(place.settings).read(KEY) == b"a video"

    @pytest.mark.parametrize("key", [KEY, "default", "default/j1", "other"])
    def test_what_was_never_put_is_not_found(self, store: Store, file: Callable[[bytes], Path], key: str) -> None:
        store.put(KEY + ".json", file(b"{}"), content_type="application/json")

        for read in (store.read, store.open):
            with pytest.raises(NotFound, match=key):
                read(key)

    def test_what_was_put_exists(self, store: Store, file: Callable[[bytes], Path]) -> None:
        store.put(KEY, file(b""), content_type="video/mp4")

        assert store.exists(KEY)

    @pytest.mark.parametrize("key", [KEY, "default", "default/j1", "other", "../file", "", "/etc/passwd"])
    def test_nothing_else_exists(self, store: Store, file: Callable[[bytes], Path], key: str) -> None:
        store.put(KEY + ".json", file(b"{}"), content_type="application/json")

        assert not store.exists(key)

    def test_the_keys_below_a_folder_are_listed_in_order_and_can_be_read(
        self, store: Store, file: Callable[[bytes], Path]
    ) -> None:
        keys = ["default/j1/a1/video.mp4", "default/j1/a1/deep/x", "default/j1/.b", "default/j10/c", "other/j1/d"]
        for key in keys:
            store.put(key, file(key.encode()), content_type="video/mp4")

        assert store.list("default/j1") == ["default/j1/.b", "default/j1/a1/deep/x", "default/j1/a1/video.mp4"]
        assert store.list("default") == sorted(keys[:-1])
        assert all(store.read(key) == key.encode() for key in store.list("default"))

    def test_more_keys_than_one_answer_of_s3_holds_are_listed(
        self, store: Store, file: Callable[[bytes], Path]
    ) -> None:
        keys = [f"default/j1/{number:04}" for number in range(1005)]
        path = file(b"")
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda key: store.put(key, path, content_type="video/mp4"), keys))

        assert store.list("default/j1") == keys

    @pytest.mark.parametrize("prefix", ["default/j2", "default/j", KEY, f"{KEY}/x", "nobody"])
    def test_where_nothing_is_the_list_is_empty(self, store: Store, file: Callable[[bytes], Path], prefix: str) -> None:
        assert store.list(prefix) == []
        store.put(KEY, file(b"a video"), content_type="video/mp4")
        assert store.list(prefix) == []

    def test_what_was_deleted_is_gone(self, store: Store, file: Callable[[bytes], Path]) -> None:
        for key in (KEY, KEY + ".json"):
            store.put(key, file(b"a video"), content_type="video/mp4")

        store.delete(KEY)

        assert store.list("default") == [KEY + ".json"]
        with pytest.raises(NotFound):
            store.read(KEY)

    @pytest.mark.parametrize("key", [KEY, "default", "default/j1"])
    def test_deleting_what_is_not_there_is_no_error(
        self, store: Store, file: Callable[[bytes], Path], key: str
    ) -> None:
        store.put(KEY + ".json", file(b"{}"), content_type="application/json")

        store.delete(key)

        assert store.list("default") == [KEY + ".json"]

    @pytest.mark.parametrize("key", ["../file", "default/../../file", "/etc/passwd", "", "default//x", "./x", ".."])
    def test_a_key_that_leads_elsewhere_is_refused(self, store: Store, file: Callable[[bytes], Path], key: str) -> None:
        with pytest.raises(NotFound):
            store.put(key, file(b"a video"), content_type="video/mp4")
        for call in (store.open, store.read, store.list, store.delete):
            with pytest.raises(NotFound):
                call(key)

    def test_a_reader_during_a_put_sees_the_old_or_the_new(self, store: Store, file: Callable[[bytes], Path]) -> None:
        versions = {letter * 2**20 for letter in (b"a", b"b")}
        store.put(KEY, file(b"a" * 2**20), content_type="video/mp4")

        with ThreadPoolExecutor() as threads:
            writes = threads.submit(replace_often, store, [file(data) for data in sorted(versions)])
            seen = {store.read(KEY)}
            while not writes.done():
                seen.add(store.read(KEY))

        assert writes.exception() is None
        assert seen <= versions

    def test_a_store_that_can_be_written_answers_a_ping(self, store: Store) -> None:
        store.ping()

    def test_a_place_that_is_missing_fails_a_ping(self, place: Place) -> None:
        with pytest.raises(Unavailable) as caught:
            open_store(place.missing).ping()

        assert caught.value.retry_after_s > 0

    def test_a_store_out_of_reach_is_unavailable(self, place: Place, file: Callable[[bytes], Path]) -> None:
        store = open_store(place.unreachable)

        for call in (
            store.ping,
            lambda: store.put(KEY, file(b"a video"), content_type="video/mp4"),
            lambda: store.read(KEY),
            lambda: store.open(KEY),
            lambda: store.exists(KEY),
            lambda: store.list("default"),
            lambda: store.delete(KEY),
        ):
            with pytest.raises(Unavailable):
                call()


def replace_often(store: Store, paths: list[Path]) -> None:
    for path in paths * 10:
        store.put(KEY, path, content_type="video/mp4")


class TestDirectory:
    """What a directory alone promises."""

    @pytest.fixture
    def place(self, directory: Place) -> Place:
        return directory

    def test_it_has_no_addresses(self, store: Store, file: Callable[[bytes], Path]) -> None:
        store.put(KEY, file(b"a video"), content_type="video/mp4")

        assert store.link(KEY, expires_s=60) is None

    def test_a_put_that_fails_leaves_nothing_behind(self, store: Store, tmp_path: Path) -> None:
        """A full disk left one hidden copy per try."""
        with pytest.raises(Unavailable):
            store.put(KEY, tmp_path, content_type="video/mp4")

        assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []

    def test_a_put_under_way_is_not_listed(self, store: Store, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        with ThreadPoolExecutor() as threads:
            put = threads.submit(store.put, KEY, pipe, content_type="video/mp4")
            with pipe.open("wb") as writer:
                writer.write(b"half")
                writer.flush()
                under_way = store.list("default")
        assert under_way == []
        assert put.exception() is None
        assert store.list("default") == [KEY]

    def test_a_link_out_of_the_directory_is_not_followed(self, store: Store, tmp_path: Path) -> None:
        store.ping()
        (tmp_path / "store" / "away").symlink_to(tmp_path)

        with pytest.raises(NotFound):
            store.read("away/file")


class TestBucket:
    """What a bucket alone promises."""

    @pytest.fixture
    def place(self, bucket: Place) -> Place:
        return bucket

    def test_anybody_may_read_a_link(self, store: Store, file: Callable[[bytes], Path]) -> None:
        store.put(KEY, file(b"a video"), content_type="video/mp4")

        link = store.link(KEY, expires_s=60)

        assert link is not None
        with urllib.request.urlopen(link) as response:
            assert response.read() == b"a video"
            assert response.headers["Content-Type"] == "video/mp4"

    def test_a_link_is_signed_in_the_present_way_for_the_time_asked(self, store: Store) -> None:
        """boto3's default is the old way, which newer regions and other services refuse."""
        link = store.link(KEY, expires_s=77)

        assert link is not None
        assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in link
        assert "X-Amz-Expires=77" in link

    def test_without_credentials_it_is_unavailable(
        self, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, str(tmp_path / "none"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

        store = open_store(place.settings)

        with pytest.raises(Unavailable, match="credentials"):
            store.link(KEY, expires_s=60)

    def test_an_upload_under_way_is_not_listed(self, store: Store, place: Place) -> None:
        bucket, _, prefix = place.settings.store_url.removeprefix("s3://").partition("/")
        client = boto3.client("s3", endpoint_url=place.settings.s3_endpoint)
        name = {"Bucket": bucket, "Key": f"{prefix}/{KEY}"}
        upload = client.create_multipart_upload(**name)["UploadId"]
        client.upload_part(**name, UploadId=upload, PartNumber=1, Body=b"half")

        assert store.list("default") == []

    def test_a_mark_of_a_folder_is_no_artifact(self, store: Store, place: Place) -> None:
        """Some tools write an empty object that ends in a slash, to show a folder."""
        bucket, _, prefix = place.settings.store_url.removeprefix("s3://").partition("/")
        client = boto3.client("s3", endpoint_url=place.settings.s3_endpoint)
        client.put_object(Bucket=bucket, Key=f"{prefix}/default/j1/", Body=b"")

        assert store.list("default") == []
