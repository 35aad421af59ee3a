"""The manifest: what a stage writes next to its output, and the only way to write or read an output.

Writes an artifact (a directory) aside, with a checksum for each file, and puts it in place by one rename; reads
it back only if every byte is unchanged. Imports neither Beam, TensorFlow nor ScaNN.

Checksums are XXH128: they find damage, not forgery.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import xxhash
from pydantic import AfterValidator, ValidationError, field_validator

from pipelines.contracts.configuration import Section, describe
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.files import file_name
from pipelines.drafts import draft_of, replace_directory, sync

MANIFEST_FILE = "manifest.json"
_BLOCK_BYTES = 1 << 20
_SYNC_THREADS = 8


FileName = Annotated[str, AfterValidator(file_name)]


class FileEntry(Section):
    """Size and checksum of one file."""

    bytes: int
    xxh128: str


class Manifest(Section):
    """The facts about an artifact.

    ``inputs`` maps the name of each input to its fingerprint; ``config`` is the configuration the stage ran with;
    ``facts`` is what the stage found (counts, metrics, seconds). ``fingerprint`` names the content: kind, inputs,
    configuration and files; two runs that wrote the same bytes have the same. ``seal`` is the checksum of the
    manifest itself, so that an edited one is found.
    """

    kind: str
    format_version: int
    created_at: str
    towerline_version: str
    git_commit: str | None
    inputs: dict[str, str]
    config: dict[str, Any]
    facts: dict[str, Any]
    files: dict[FileName, FileEntry]
    fingerprint: str
    seal: str

    @field_validator("files")
    @classmethod
    def _files_that_can_be_written(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        """Each name is a place of its own below the artifact's folder.

        Raises:
            ValueError: a name is the manifest's own, or is also a folder of another name.
        """
        folders = {str(folder) for name in files for folder in PurePosixPath(name).parents}
        for name in (MANIFEST_FILE, *files):
            if name in folders or (name == MANIFEST_FILE and name in files):
                raise ValueError(f"{name!r}: expected a file of the artifact, got a name that is taken")
        return files


@dataclass(frozen=True)
class Artifact:
    """A directory that was read and found complete."""

    dir: Path
    manifest: Manifest


@dataclass(frozen=True)
class Draft:
    """A directory being written, invisible to readers. Hidden files in it are removed at the end.

    ``facts`` goes into the manifest. ``carried`` are entries of files taken over unchanged from another artifact,
    already durable: their checksums are not recomputed, so that damage in the source is still detected here.
    """

    dir: Path
    facts: dict[str, Any] = field(default_factory=dict)
    carried: dict[str, FileEntry] = field(default_factory=dict)


def fingerprint_of(value: object) -> str:
    """Returns 16 hex digits that are equal for equal JSON-able values, on every machine.

    Keys are sorted; values that JSON cannot express (paths, dates) are written as text.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return xxhash.xxh3_64_hexdigest(text)


def checksum(path: Path) -> str:
    """Returns the XXH128 of a file's bytes, as hex."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def towerline_version() -> str:
    """The version of the installed package."""
    try:
        return importlib.metadata.version("towerline")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


@functools.cache
def git_commit() -> str | None:
    """The commit of the source tree the package runs from; None if it is installed from a wheel."""
    if not (Path(__file__).parents[2] / ".git").exists():
        return None
    command = ["git", "-C", str(Path(__file__).parents[2]), "rev-parse", "--verify", "-q", "HEAD"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or None
    return None


@contextlib.contextmanager
def write_artifact(
    path: Path,
    *,
    kind: str,
    format_version: int = 1,
    inputs: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
) -> Iterator[Draft]:
    """Yields a directory to write into, and moves it to ``path`` when the block ends without an error.

    An existing artifact at ``path`` stays readable until the last moment, and is kept if the block fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft_of(path) as aside:
        draft = Draft(dir=aside)
        yield draft
        manifest = _seal(draft, kind, format_version, inputs or {}, config or {})
        write_durably(aside / MANIFEST_FILE, manifest.model_dump_json(indent=2).encode())
        replace_directory(aside, path)


def _seal(draft: Draft, kind: str, format_version: int, inputs: dict[str, str], config: dict[str, Any]) -> Manifest:
    _sweep(draft.dir)
    written = sorted(_files_below(draft.dir) - set(draft.carried))
    with ThreadPoolExecutor(_SYNC_THREADS) as pool:  # In parallel, because a disk makes many files durable at once.
        entries = pool.map(lambda name: _made_durable(draft.dir / name), written)
        files = dict(sorted({**draft.carried, **dict(zip(written, entries, strict=True))}.items()))
    content: dict[str, Any] = {
        "kind": kind,
        "format_version": format_version,
        "inputs": inputs,
        "config": plain_config(config),
        "files": {name: entry.model_dump() for name, entry in files.items()},
    }
    fields = {
        **content,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "towerline_version": towerline_version(),
        "git_commit": git_commit(),
        "facts": plain_config(draft.facts),
        "fingerprint": fingerprint_of(content),
    }
    return Manifest.model_validate({**fields, "seal": fingerprint_of(fields)})


def _files_below(folder: Path) -> set[str]:
    """Names of an artifact's files. A hidden file is a draft of a task that was killed or that a cluster runs twice."""
    names = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return {str(name) for name in names if not any(part.startswith(".") for part in name.parts)}


def _sweep(folder: Path) -> None:
    """Removes hidden files. Another task may remove or rename them meanwhile."""
    for hidden in list(folder.rglob(".*")):
        if hidden.is_dir():
            shutil.rmtree(hidden, ignore_errors=True)
        else:
            hidden.unlink(missing_ok=True)


def _made_durable(path: Path) -> FileEntry:
    sync(path)
    return FileEntry(bytes=path.stat().st_size, xxh128=checksum(path))


def plain_config(value: dict[str, Any]) -> dict[str, Any]:
    """``value`` after a round trip through JSON, as a manifest has it."""
    plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return plain


def write_durably(path: Path, content: bytes) -> None:
    """Writes a small file completely or not at all: to a temporary name, synced, renamed, its directory synced."""
    aside = path.parent / f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.draft"
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)


def open_artifact(path: Path, *, kind: str, format_version: int = 1, verify: bool = True) -> Artifact:
    """Returns the artifact at ``path``. Nothing is written, removed or renamed.

    Args:
        path: the directory.
        kind: what it must hold: features, model, embeddings, bundle.
        format_version: the newest format this reader knows; older ones are read too.
        verify: compare each file's checksum; without it only the names and sizes are compared.

    Raises:
        ArtifactError: the directory or its manifest is missing, the artifact is of another kind or a newer format, or a
            file is missing, left over, of another size or of other content; the message names the file.
    """
    manifest = read_manifest(path)
    if manifest.kind != kind:
        raise ArtifactError(f"{path}: expected an artifact of kind {kind!r}, found {manifest.kind!r}. Check the path.")
    if manifest.format_version > format_version:
        raise ArtifactError(
            f"{path}: format version {manifest.format_version} of {kind!r} is newer than {format_version}, the newest "
            "this version reads. Upgrade towerline, or write the artifact again."
        )
    check_files(path, manifest, verify=verify)
    return Artifact(dir=path, manifest=manifest)


def read_manifest(path: Path) -> Manifest:
    """Returns the manifest of the artifact at ``path``, its own fingerprint checked.

    Raises:
        ArtifactError: there is none, it cannot be read, or it was edited.
    """
    file = path / MANIFEST_FILE
    if not path.is_dir():
        raise ArtifactError(f"{path}: expected an artifact directory, found none. Run the stage that writes it.")
    if not file.is_file():
        raise ArtifactError(f"{file}: missing. The directory was not written by towerline, or not to its end.")
    return parse_manifest(file.read_bytes(), str(file))


def parse_manifest(content: bytes, file: str) -> Manifest:
    """Returns the manifest in the bytes of its file, its own fingerprint checked.

    Args:
        content: the file's bytes.
        file: where they come from, for messages.

    Raises:
        ArtifactError: it cannot be read, names a file outside the artifact, or was edited.
    """
    try:
        raw = json.loads(content)
        manifest = Manifest.model_validate(raw)
    except ValidationError as err:
        raise ArtifactError(
            f"{describe(err, file, Manifest)}\nThe manifest is damaged: write the artifact again."
        ) from err
    except (ValueError, RecursionError) as err:
        raise ArtifactError(f"{file}: not valid JSON ({err}). It is damaged: write the artifact again.") from err
    if fingerprint_of({key: value for key, value in raw.items() if key != "seal"}) != manifest.seal:
        raise ArtifactError(
            f"{file}: its content does not fit its seal {manifest.seal}: it was edited or damaged. "
            "Write the artifact again."
        )
    return manifest


def check_files(path: Path, manifest: Manifest, *, verify: bool) -> None:
    """Compares the files below ``path`` with the manifest.

    Raises:
        ArtifactError: a file is missing, left over, of another size, or (``verify``) of other content.
    """
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise ArtifactError(f"{file}: missing, but the manifest names it. Write the artifact again.")
        size = file.stat().st_size
        if size != entry.bytes:
            raise ArtifactError(f"{file}: expected {entry.bytes} bytes, found {size}. Write the artifact again.")
        if verify and checksum(file) != entry.xxh128:
            raise ArtifactError(f"{file}: its checksum is not the manifest's: damaged. Write the artifact again.")
    extra = sorted(_files_below(path) - set(manifest.files) - {MANIFEST_FILE})
    if extra:
        raise ArtifactError(f"{path / extra[0]}: not in the manifest. Remove it, or write the artifact again.")


def is_current(path: Path, *, kind: str, format_version: int, inputs: dict[str, str], config: dict[str, Any]) -> bool:
    """Whether the artifact at ``path`` is complete and was made from these inputs with this configuration."""
    try:
        manifest = open_artifact(path, kind=kind, format_version=format_version, verify=False).manifest
    except ArtifactError:
        return False
    same_config = manifest.config == plain_config(config)
    return manifest.format_version == format_version and manifest.inputs == inputs and same_config
