"""Files: finds the files of a table, local or on any fsspec URL.

Reads directories, never the files themselves. A path is a file or a folder if there is one of that name, and only
otherwise a glob. A folder means its files and those of the folders below; names that begin with ``.`` or ``_`` are left
out there, and folders named ``column=value`` give a column.
"""

from __future__ import annotations

import datetime
import json
import os
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import xxhash
from fsspec.implementations.local import LocalFileSystem

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import TableSource

_FORMATS = {
    "parquet": "parquet", "pq": "parquet", "parq": "parquet", "csv": "csv", "tsv": "tsv", "tab": "tsv",
    "jsonl": "jsonl", "ndjson": "jsonl",
}  # fmt: skip
# JSON by name alone: a folder may hold a JSON file that describes the others.
_NAMED_FORMATS = {**_FORMATS, "json": "jsonl"}
_COMPRESSIONS = {"gz": "gzip", "gzip": "gzip", "bz2": "bz2", "zst": "zstd", "zstd": "zstd", "xz": "xz"}
_UNREADABLE_ENDINGS = ("zip", "lz4", "7z", "snappy", "sz", "lzo", "br", "z", "rar")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_SHOWN = 8
_UNREACHABLE = (OSError, ValueError, ImportError)
# Entries of a directory that change with the content, whatever the clock; and those that tell a time.
_REMOTE_TAGS = (
    "ETag", "etag", "md5Hash", "md5", "crc32c", "content_md5", "checksum", "VersionId", "version_id", "generation",
)  # fmt: skip
_REMOTE_TIMES = ("LastModified", "last_modified", "mtime", "modified", "updated", "created")


@dataclass(frozen=True)
class FileState:
    """What shows that a file has changed without reading it.

    token: times and inode, or an object's ETag; empty where there is neither. modified_ns: time of the last change,
    where the token is no more than a time.
    """

    bytes: int
    token: str
    modified_ns: int | None = None


@dataclass(frozen=True)
class SourceFile:
    """One file of a table.

    url: a path or URL. format: parquet, csv, tsv or jsonl. compression: None, gzip, bz2, zstd or xz. partitions:
    columns and values (None: missing) that its folders give. state: when it was found. content: hash of its content,
    empty until ``fingerprints`` has read it; settled: whether the state says as much as the hash.
    """

    url: str
    format: str
    bytes: int
    compression: str | None = None
    partitions: tuple[tuple[str, str | None], ...] = ()
    state: FileState = FileState(0, "")
    content: str = ""
    settled: bool = False

    @property
    def fingerprint(self) -> str:
        """Equal for files that give equal rows: of the content, and of what says how it is read."""
        how = [self.content, self.format, self.compression, self.partitions]
        return xxhash.xxh3_128_hexdigest(json.dumps(how))

    @property
    def is_text(self) -> bool:
        """Whether its format declares no types."""
        return self.format != "parquet"

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine."""
        return "://" not in self.url


def find_files(table: TableSource, name: str) -> tuple[SourceFile, ...]:
    """Lists a table's files, by name.

    Raises:
        SchemaError: a path matches nothing, cannot be reached, or is of no known format.
    """
    found: dict[str, SourceFile] = {}
    for path in table.paths:
        try:
            for url, info in _Place.of(path).files(table.format, name):
                found[url] = _describe(url, info, table.format, name)
        except _UNREACHABLE as err:
            raise SchemaError(f"tables.{name}.path: {path} cannot be reached: {err}. Check the path or URL.") from err
    return tuple(found[url] for url in sorted(found))


@dataclass(frozen=True)
class _Place:
    """A path of the TOML: what the user wrote, its file system, and its name there."""

    written: str
    fs: Any
    root: str

    @classmethod
    def of(cls, path: str) -> _Place:
        fs, root = fsspec.core.url_to_fs(path)
        fs.invalidate_cache()
        return cls(path, fs, root)

    def files(self, declared: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """URL and directory entry of each file."""
        any_name = declared != "auto"
        if self.fs.isfile(self.root):
            matches = [self.root]
        elif self.fs.isdir(self.root):
            matches = self._below(self.root, any_name)
        else:
            matches = self._matching(any_name) if _has_magic(self.written) else []
        if not matches:
            raise self._nothing(name)
        for match in matches:
            yield self._url(match), self.fs.info(match)

    @property
    def _is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def _url(self, path: str) -> str:
        return path if self._is_local else str(self.fs.unstrip_protocol(path))

    def _below(self, folder: str, any_name: bool) -> list[str]:
        """Files in a folder and below; of known suffixes unless the format is declared (``any_name``)."""
        base = folder.rstrip("/") + "/"
        names = _walked(folder) if self._is_local else self.fs.find(folder)
        seen = [path for path in names if path.startswith(base) and not _hidden(path[len(base) :].split("/"), "._")]
        for path in seen:
            if _is_packed(path):
                raise SchemaError(
                    f"{self._url(path)} is packed in a way that cannot be read. Unpack it, or pack it as .gz, "
                    ".bz2, .zst or .xz."
                )
        return [path for path in seen if any_name or _suffix(path) in _FORMATS]

    def _matching(self, any_name: bool) -> list[str]:
        """Files that match a glob, and those in folders that match."""
        fixed = self.root[: min(self.root.find(character) for character in "*?[" if character in self.root)]
        base = fixed[: fixed.rfind("/") + 1]
        left_out = "".join(sign for sign in "._" if f"/{sign}" not in self.root[len(base) - 1 :])
        files: list[str] = []
        for match in sorted(self.fs.glob(self.root)):
            if _hidden(match[len(base) :].split("/"), left_out):
                continue
            if self.fs.isdir(match):
                files += self._below(match, any_name)
            else:
                files.append(match)
        return list(dict.fromkeys(files))

    def _nothing(self, name: str) -> SchemaError:
        """An error that says what there is in place of what was expected."""
        if self.fs.isdir(self.root):
            there = _listed(self.fs, self.root)
            return SchemaError(
                f"tables.{name}.path: expected Parquet, CSV, TSV or JSONL files in the folder {self.written} or below, "
                f'found {there}. Correct the path, or give format = "csv" (or another) to read all files there.'
            )
        parent = self.root.rstrip("/")
        while parent and not self.fs.isdir(parent):
            parent = parent.rpartition("/")[0]
        there = _listed(self.fs, parent) if parent else "nothing"
        return SchemaError(
            f"tables.{name}.path: expected at least one file at {self.written}, found none; in {parent or '/'} there "
            f"is {there}. Correct the path."
        )


def _has_magic(path: str) -> bool:
    return any(character in path for character in "*?[")


def _walked(folder: str) -> list[str]:
    """All files in a local folder and below, links followed; a folder that several links lead to is read once.

    fsspec leaves out linked folders, and those that it may not list, without a word.
    """
    files: list[str] = []
    seen: set[str] = set()

    def refuse(err: OSError) -> None:
        raise err

    for here, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else sorted(name for name in folders if not _hidden([name], "._"))
        files += [] if real in seen else [os.path.join(here, name) for name in names]
        seen.add(real)
    return sorted(files)


def _hidden(parts: Iterable[str], signs: str) -> bool:
    return any(part.startswith(tuple(signs)) for part in parts if part) if signs else False


def _is_packed(path: str) -> bool:
    parts = _file_name(path).split(".")
    return len(parts) > 2 and parts[-1] in _UNREADABLE_ENDINGS and parts[-2] in _NAMED_FORMATS


def _listed(fs: Any, folder: str) -> str:
    names = sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in fs.ls(folder, detail=False))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) + more) if names else "nothing"


def _suffix(url: str) -> str:
    """The ending that names the format, without the one that names a compression."""
    parts = _file_name(url).split(".")
    if len(parts) > 2 and parts[-1] in _COMPRESSIONS:
        return parts[-2]
    return parts[-1] if len(parts) > 1 else ""


def _file_name(url: str) -> str:
    """The last part of a path, in small letters; of a web address without its query."""
    return (url.partition("?")[0] if url.startswith("http") else url).lower().rsplit("/", 1)[-1]


def _describe(url: str, info: dict[str, Any], declared: str, name: str) -> SourceFile:
    form = declared if declared != "auto" else _NAMED_FORMATS.get(_suffix(url), "")
    if not form:
        raise SchemaError(
            f"tables.{name}: {url} has no known suffix (parquet, csv, tsv, jsonl). "
            'Give format = "parquet", "csv", "tsv" or "jsonl".'
        )
    state = _state(url, info)
    compression = _COMPRESSIONS.get(_file_name(url).rpartition(".")[2])
    return SourceFile(url, form, state.bytes, compression, _partitions(url), state)


def _partitions(url: str) -> tuple[tuple[str, str | None], ...]:
    """Columns that the folders directly above the file give, as ``name=value``; percent signs are decoded."""
    found: list[tuple[str, str | None]] = []
    for folder in reversed(url.split("/")[:-1]):
        key, sign, value = folder.partition("=")
        if not (sign and key):
            break
        text = urllib.parse.unquote(value)
        found.append((urllib.parse.unquote(key), None if text == _HIVE_NULL else text))
    return tuple(dict(reversed(found)).items())


def _state(url: str, info: dict[str, Any]) -> FileState:
    if "://" not in url:
        return local_state(url)
    size = int(info.get("size") or 0)
    tags = {key: str(info[key]) for key in _REMOTE_TAGS if info.get(key) is not None}
    if tags:
        return FileState(size, json.dumps(tags))
    times = [_nanoseconds(info[key]) for key in _REMOTE_TIMES if info.get(key) is not None]
    known = [moment for moment in times if moment is not None]
    return FileState(size, str(known), max(known)) if known else FileState(size, "")


def _nanoseconds(moment: object) -> int | None:
    if isinstance(moment, str):
        try:
            moment = datetime.datetime.fromisoformat(moment)
        except ValueError:
            return None
    if isinstance(moment, datetime.datetime):
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
    return int(moment * 1e9) if isinstance(moment, int | float) else None


def local_state(path: str) -> FileState:
    """The state of a local file: a changed time (ctime) cannot be set back, unlike a modification time."""
    found = os.stat(path)
    token = f"{found.st_mtime_ns}-{found.st_ctime_ns}-{found.st_dev}-{found.st_ino}"
    return FileState(found.st_size, token, max(found.st_mtime_ns, found.st_ctime_ns))
