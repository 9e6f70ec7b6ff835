"""S3: a client with time-outs, its errors translated, and objects read in parts. The only file that knows boto3.

Foreign errors leave as NotFound or Unavailable; Changed says that an object is not the one that was listed.
"""

import base64
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from engine.adapters.checksum import Checksum
from engine.contract.errors import NotFound, Unavailable

_RETRY_AFTER_S = 5.0
# Large enough that Python costs little per byte, small enough that many connections need little memory.
_CHUNK_BYTES = 2**20
# What S3 may keep of a whole object and Python computes. CRC64NVME is not among them (docs/decisions/0006).
_KEPT = {"ChecksumSHA256": "sha256", "ChecksumCRC32": "crc32"}
_MD5 = re.compile(r'"([0-9a-f]{32})(?:-(\d+))?"')


class Changed(Unavailable):
    """The object was replaced or deleted since it was listed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Object:
    """One version of an object."""

    key: str
    size_bytes: int
    etag: str


def split_url(url: str) -> tuple[str, str]:
    """Bucket and prefix of s3://BUCKET/PREFIX; the prefix may be empty."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return bucket, prefix.strip("/")


def connect(endpoint: str, **options: Any) -> Any:
    """A client of boto3; credentials as it finds them. `options` go into botocore's Config."""
    # Imported here: boto3 takes half a second, and a directory needs none of it.
    import boto3
    from botocore.config import Config

    # s3v4: by default boto3 signs links in the old way, which AWS's newer regions and other services refuse.
    config = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "max_attempts": 3},
        signature_version="s3v4",
        **options,
    )
    # A session of its own: the global one keeps the credentials of whoever came first.
    return boto3.Session().client("s3", endpoint_url=endpoint or None, config=config)


def list_objects(client: Any, bucket: str, prefix: str) -> list[Object]:
    """The objects whose key starts with `prefix`, page by page.

    Without those that end in a slash: some tools write an empty one to show a folder.
    """
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    with translated(f"s3://{bucket}/{prefix}"):
        items = [item for page in pages for item in page.get("Contents", [])]
    return [
        Object(key=item["Key"], size_bytes=item["Size"], etag=item["ETag"])
        for item in items
        if not item["Key"].endswith("/")
    ]


class Bucket:
    """Objects of one bucket, for a reader that checks what it got."""

    def __init__(self, name: str, *, endpoint: str, num_connections: int) -> None:
        self.name = name
        # Some services answer a read of a part with the checksum of the whole object, and botocore believes it.
        self._client = connect(
            endpoint, max_pool_connections=num_connections, response_checksum_validation="when_required"
        )

    def list(self, prefix: str) -> "list[Object]":
        """The objects whose key starts with `prefix`. Raises Unavailable."""
        return list_objects(self._client, self.name, prefix)

    def read(self, item: Object, *, offset: int, num_bytes: int) -> Iterator[bytes]:
        """These bytes of this very version, chunk by chunk. Raises Changed, Unavailable."""
        if not num_bytes:
            return
        where = {"Bucket": self.name, "Key": item.key, "IfMatch": item.etag}
        with _unchanged(item, self.name):
            answer = self._client.get_object(**where, Range=f"bytes={offset}-{offset + num_bytes - 1}")
            if answer["ContentLength"] != num_bytes:
                got = f"{answer['ContentLength']} bytes, not the {num_bytes} it was asked for"
                raise Unavailable(f"S3 sends {got}, of s3://{self.name}/{item.key}", retry_after_s=_RETRY_AFTER_S)
            # Closed also when the reader gives up: the rest is of no use.
            with closing(answer["Body"]) as body:
                yield from body.iter_chunks(_CHUNK_BYTES)

    def checksum(self, item: Object) -> Checksum | None:
        """What S3 itself knows of the object's bytes; None if that cannot be computed. Raises Changed, Unavailable."""
        where = {"Bucket": self.name, "Key": item.key, "IfMatch": item.etag}
        with _unchanged(item, self.name):
            head = self._client.head_object(**where, ChecksumMode="ENABLED")
            found = _MD5.fullmatch(item.etag)
            kept = {name: head[name] for name in _KEPT if "-" not in head.get(name, "-")}
            if kept:
                name, value = next(iter(kept.items()))
                return Checksum(algorithm=_KEPT[name], value=base64.b64decode(value).hex())
            # An ETag is an md5 unless the object is encrypted with a key of its own.
            if (
                found is None
                or head.get("ServerSideEncryption", "AES256") != "AES256"
                or "SSECustomerAlgorithm" in head
            ):
                return None
            # No IfMatch: some services compare it with the ETag of the part.
            first = {"Bucket": self.name, "Key": item.key, "PartNumber": 1}
            part_bytes = self._client.head_object(**first)["ContentLength"] if found[2] else 0
        return _of_etag(item, md5=found[1], num_parts=int(found[2] or 0), part_bytes=part_bytes)


def _of_etag(item: Object, *, md5: str, num_parts: int, part_bytes: int) -> Checksum | None:
    """An upload in parts has the md5 of its parts' md5s: to be computed where all parts but the last are equal."""
    if num_parts and (not part_bytes or -(-item.size_bytes // part_bytes) != num_parts):
        return None
    return Checksum(algorithm="md5", value=md5, part_bytes=part_bytes)


@contextmanager
def _unchanged(item: Object, bucket: str) -> Iterator[None]:
    address = f"s3://{bucket}/{item.key}"
    try:
        with translated(address):
            yield
    except NotFound as error:
        raise Changed(f"{address} was deleted while it was read", retry_after_s=_RETRY_AFTER_S) from error


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of boto3 leave as ours, naming `what`."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        found: Any = error.response.get("Error", {})
        code = found.get("Code")
        if code in ("404", "NoSuchKey"):
            raise NotFound(f"there is no {what}") from error
        if code in ("412", "PreconditionFailed"):
            raise Changed(f"{what} was replaced while it was read", retry_after_s=_RETRY_AFTER_S) from error
        raise Unavailable(f"S3 refused {what}: {code} {found.get('Message')}", retry_after_s=_RETRY_AFTER_S) from error
    except (Boto3Error, BotoCoreError) as error:
        raise Unavailable(f"S3 does not answer for {what}: {error}", retry_after_s=_RETRY_AFTER_S) from error
