"""Fingerprints: hashes of the whole content of files, so that a change of any byte is seen.

A file whose state (size, times and inode, or an object's ETag) is that of an earlier run is not read again. A state
counts only if it is older than the clock of a file system is coarse: a file changed in the last two seconds before it
was hashed may change once more and keep its state.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import fsspec
import xxhash

from pipelines.tables.files import FileState, SourceFile, local_state
from pipelines.tables.formats.opening import readable

_BLOCK_BYTES = 4 << 20
_THREADS = 4
_SETTLED_NS = 2_000_000_000
_REMEMBERED_IN_PROCESS = 100_000

Known = Mapping[tuple[str, FileState], str]


def with_content(files: Sequence[SourceFile], name: str, known: Known | None = None) -> tuple[SourceFile, ...]:
    """The files with the hashes of their contents.

    Args:
        files: of one table.
        name: of the table.
        known: hashes of an earlier run, see ``remembered``; a file in the same state is not read.

    Raises:
        SchemaError: a file cannot be read, or changes meanwhile.
    """
    if not files:
        return ()
    with ThreadPoolExecutor(min(_THREADS, len(files))) as pool:
        return tuple(pool.map(lambda file: _hashed(file, name, known or {}), files))


def remembered(files: Iterable[SourceFile]) -> list[dict[str, Any]]:
    """What a later run needs in order not to read the files again, as JSON-able values for ``recall``."""
    return [
        {
            "url": file.url,
            "content": file.content,
            "bytes": file.state.bytes,
            "token": file.state.token,
            "modified_ns": file.state.modified_ns,
        }
        for file in files
        if file.content and file.settled
    ]


def recall(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, FileState], str]:
    """The hashes that ``remembered`` noted, by file and state; notes of another form are left out."""
    known: dict[tuple[str, FileState], str] = {}
    for record in records:
        try:
            state = FileState(int(record["bytes"]), str(record["token"]), record["modified_ns"])
            known[str(record["url"]), state] = str(record["content"])
        except (KeyError, TypeError, ValueError):
            continue
    return known


def _hashed(file: SourceFile, name: str, known: Known) -> SourceFile:
    settled = _is_settled(file.state)
    if settled and (file.url, file.state) in known:
        return replace(file, content=known[file.url, file.state], settled=True)
    with readable(file.url, name):
        content = _hash_of_state(file.url, file.state) if settled else _hash(file.url)
        if file.is_local and local_state(file.url) != file.state:
            raise ValueError("it changes while it is read")
    return replace(file, content=content, settled=settled)


def _is_settled(state: FileState) -> bool:
    """Whether no later change can leave the state as it is."""
    if not state.token:
        return False
    return state.modified_ns is None or time.time_ns() - state.modified_ns > _SETTLED_NS


@functools.lru_cache(_REMEMBERED_IN_PROCESS)
def _hash_of_state(url: str, state: FileState) -> str:  # noqa: ARG001
    """The hash of a file in a settled state: read once per process."""
    return _hash(url)


def _hash(url: str) -> str:
    digest = xxhash.xxh3_128()
    if "://" in url:
        with fsspec.open(url, "rb") as file:
            while content := file.read(_BLOCK_BYTES):
                digest.update(content)
        return digest.hexdigest()
    block = memoryview(bytearray(_BLOCK_BYTES))
    with open(url, "rb", buffering=0) as file:
        while length := file.readinto(block):
            digest.update(block[:length])
    return digest.hexdigest()
