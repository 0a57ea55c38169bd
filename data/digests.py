"""Digests of sources: the same for a corpus that was copied or moved, another for an edited one.

    Running    of every document's id in order, so exact. It does not depend on where the documents
               lie or how they are dealt to files: `joined` makes it from those of the parts.
    sampled    of files that are opened and not read through: their sizes and some of their bytes

A digest is a number of 127 bits. Which source has which: docs/data-order.md.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable
from typing import BinaryIO, Protocol

# A polynomial in the ids modulo a prime: ids are hashes already, so that two corpora that were not
# made to collide do so with a probability of 2^-127 times the number of documents.
_PRIME = 2**127 - 1
_BASE = int.from_bytes(hashlib.sha256(b"documents").digest()[:15], "big")

_BLOCKS, _BLOCK_BYTES = 64, 4096


class Running:
    """Of the documents so far.

    Fields:
        value: the digest.
        count: how many documents there were.
    """

    def __init__(self, value: int = 0, count: int = 0):
        self.value, self.count = value, count

    def add(self, document_id: int) -> None:
        # From 1 on, so that a document more is always another number.
        self.value = (self.value * _BASE + document_id + 1) % _PRIME
        self.count += 1


def of_ids(ids: Iterable[int]) -> int:
    running = Running()
    for document_id in ids:
        running.add(document_id)
    return running.value


def joined(parts: Iterable[tuple[int, int]]) -> int:
    """Of the documents of all parts in order, from the (digest, number of documents) of each."""
    value = 0
    for digest, count in parts:
        value = (value * pow(_BASE, count, _PRIME) + digest) % _PRIME
    return value


def of_parts(*parts: object) -> int:
    """Of bytes and of JSON values."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return int.from_bytes(digest.digest(), "big") % _PRIME


class Openable(Protocol):
    """A path of pathlib or of etils.epath."""

    def open(self, mode: str, /) -> BinaryIO: ...


def sampled(path: pathlib.Path | Openable) -> str:
    """SHA-256 of a file's size and of its bytes: all of a file of at most 256 KiB, else 64 blocks
    of 4 KiB at even distances, the first and the last among them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        digest.update(size.to_bytes(8, "big"))
        last = max(size - _BLOCK_BYTES, 0)
        if size <= _BLOCKS * _BLOCK_BYTES:
            starts, length = [0], size
        else:
            starts, length = [last * k // (_BLOCKS - 1) for k in range(_BLOCKS)], _BLOCK_BYTES
        for start in starts:
            file.seek(start)
            digest.update(file.read(length))
    return digest.hexdigest()


def shown(digest: int) -> str:
    """32 hexadecimal digits, as states and manifests hold it."""
    return f"{digest:032x}"
