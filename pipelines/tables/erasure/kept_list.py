"""The kept list: everyone whom a data set's features have ever forgotten, found again by each run.

Kept in the features artifact, and once more next to it, so that it outlives an artifact that is removed or damaged.
The copy is written before the artifact is: users whom a failed run was asked to forget stay on the list.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.errors import ArtifactError, SchemaError
from pipelines.contracts.manifest import MANIFEST_FILE, read_manifest, write_durably
from pipelines.tables.erasure.forget_list import ForgetList
from pipelines.tables.erasure.forgotten import Forgotten

FORGOTTEN_FILE = "forgotten.arrow"
NOBODY = ForgetList("an empty list")


def copy_of(artifact: Path) -> Path:
    """The file next to a features artifact that holds its list once more."""
    return artifact.with_name(f"{artifact.name}.{FORGOTTEN_FILE}")


def kept_list(artifact: Path) -> Forgotten:
    """Everyone whom the runs of an artifact have forgotten; nobody where there is neither artifact nor copy.

    Raises:
        ArtifactError: a list is damaged, or the manifest names one that is gone.
    """
    own, copy = artifact / FORGOTTEN_FILE, copy_of(artifact)
    found = Forgotten.empty()
    for file, other in ((own, copy), (copy, own)):
        if not file.is_file():
            continue
        try:
            found = found.joined(Forgotten.read(file))
        except ArtifactError as err:
            raise ArtifactError(f"{err} {_way_out(file, other)}") from err
    if not own.is_file() and not copy.is_file() and _is_named(artifact):
        raise ArtifactError(
            f"{own}: missing, but the manifest names it: the list of users to forget is lost. Put the file back, "
            f"or remove {artifact} and give all of them again with --forget."
        )
    return found


def forgotten_by(artifact: Path) -> Forgotten:
    """The users whom the run that wrote the artifact dropped.

    Raises:
        ArtifactError: the list is damaged.
    """
    file = artifact / FORGOTTEN_FILE
    return Forgotten.read(file) if file.is_file() else Forgotten.empty()


def id_type_of(artifact: Path) -> pa.DataType:
    """Type of the user ids in a features artifact: int64 or string.

    Raises:
        ArtifactError: its manifest cannot be read.
    """
    return pa.int64() if read_manifest(artifact).facts["user_type"] == "int64" else pa.string()


def write_copy(forgotten: Forgotten, artifact: Path) -> None:
    """Writes the list next to the artifact, or removes it where it has become empty."""
    copy = copy_of(artifact)
    if len(forgotten) == 0:
        copy.unlink(missing_ok=True)
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    forgotten.write(copy)
    write_durably(copy, copy.read_bytes())


def _way_out(file: Path, other: Path) -> str:
    if other.is_file():
        return f"Remove {file}; {other} has the list once more."
    return f"Put a backup of it back, or remove {file} and give all users to forget again with --forget."


def _is_named(artifact: Path) -> bool:
    try:
        files = json.loads((artifact / MANIFEST_FILE).read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return FORGOTTEN_FILE in files


@dataclass(frozen=True)
class Erasure:
    """Whom a run drops.

    Args:
        before: everyone whom earlier runs have forgotten.
        forget: users to forget from this run on.
        remember: users to take off the list.
    """

    before: Forgotten
    forget: ForgetList = NOBODY
    remember: ForgetList = NOBODY

    def as_ids(self, id_type: pa.DataType) -> ErasureIds:
        """The lists as ids.

        Args:
            id_type: of user ids, int64 or string.

        Raises:
            SchemaError: a line is no id of this type, or a user is on both lists.
        """
        forget, remember = self.forget.ids(id_type), self.remember.ids(id_type)
        both = pc.is_in(forget, value_set=remember)
        if pc.any(both).as_py():
            number = self.forget.lines[int(np.flatnonzero(both)[0])].number
            raise SchemaError(
                f"{self.forget.source}, {self.forget.named([number])}: expected a user to forget or one to remember, "
                f"got one on both lists ({self.remember.source}). Take the line out of one of them."
            )
        left = self.before.without_users(remember)
        return ErasureIds(self, forget, left.with_users(forget), remembers=left is not self.before)


@dataclass(frozen=True)
class ErasureIds:
    """The lists of a run as ids: ``forgotten`` is everyone to drop; ``remembers`` says that somebody may come back."""

    erasure: Erasure
    ids: pa.Array
    forgotten: Forgotten
    remembers: bool

    @functools.cached_property
    def _stripped(self) -> pa.Array:
        """``[lines]``: string ids without blanks around them, null where there are none."""
        if not pa.types.is_string(self.ids.type):
            return pa.nulls(len(self.ids), self.ids.type)
        plain = pc.utf8_trim_whitespace(self.ids)
        return pc.if_else(pc.equal(plain, self.ids), pa.scalar(None, pa.string()), plain)

    @functools.cached_property
    def wanted(self) -> Forgotten:
        """Whom to look for in the tables: the users asked for, and those whom blanks may have hidden."""
        return Forgotten.empty().with_users(self.ids).with_users(self._stripped.drop_null())

    def facts(self, found: Collection[int]) -> dict[str, Any]:
        """What the manifest says, without any id.

        Args:
            found: places in ``wanted`` of the users whom the tables or the previous run have.
        """
        before = self.erasure.before.holds(self.ids)
        seen, stripped = (np.isin(self.wanted.places(ids), list(found)) for ids in (self.ids, self._stripped))
        numbers = np.array([line.number for line in self.erasure.forget.lines], np.int64)
        distinct = np.zeros(len(numbers), bool)
        distinct[np.unique(self.wanted.places(self.ids), return_index=True)[1]] = True
        return {
            "users": len(self.forgotten),
            "listed": int(distinct.sum()),
            "found": int((seen & distinct).sum()),
            "before": int((before & ~seen & distinct).sum()),
            "missing_lines": numbers[~seen & ~before].tolist(),
            "stripped_lines": numbers[~seen & ~before & stripped].tolist(),
        }
