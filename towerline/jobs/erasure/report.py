"""The erasure report: what is known of each listed user, from the kept list and from a search for traces.

Reads the run's folder, the registry and this machine's copies of it; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from index.registry.storage.object_store import ObjectStore
from index.registry.storage.store import open_store
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.schema import id_type
from pipelines.tables.erasure.forget_list import ForgetList
from pipelines.tables.erasure.kept_list import id_type_of, kept_list
from towerline.config import Config
from towerline.jobs.erasure.id_columns import IdColumns
from towerline.jobs.erasure.id_matcher import DISTINCTIVE, is_short
from towerline.jobs.erasure.traces import Search, Trace, Unread, search
from towerline.jobs.stages import FEATURES


@dataclass(frozen=True)
class ErasureReport:
    """What became of users to erase.

    Args:
        users: number of ids listed.
        kept: how many of them are on the list that every run of features drops.
        files: number of files searched.
        traces: files that hold one of them.
        unread: files that could not be searched: no trace in them can be ruled out.
        untraced: lines of the list whose users have no trace, in words.
        short: number of ids that are looked for in users' columns and keys only, because they are short numbers.
    """

    users: int
    kept: int
    files: int
    traces: tuple[Trace, ...]
    unread: tuple[Unread, ...]
    untraced: str
    short: int

    @property
    def is_clean(self) -> bool:
        """Whether every file was searched and none holds a trace."""
        return not self.traces and not self.unread

    @property
    def lines(self) -> Iterator[str]:
        """The report in words, without the table of traces."""
        traced = {user for trace in self.traces for user in trace.users + trace.possible}
        if self.traces:
            yield f"{len(traced)} of {self.users} listed users left traces" + (
                f"; no trace of {self.untraced}" if self.untraced else ""
            )
        elif self.unread:
            yield f"no trace of {self.users} listed users in the {self.files} files that could be searched"
        else:
            yield f"no trace of {self.users} listed users in {self.files} files"
        yield f"{self.kept} of {self.users} are on the list of users that every run of features drops"
        if self.short:
            are = "id is a number" if self.short == 1 else "ids are numbers"
            yield (
                f"{self.short} {are} of fewer than {DISTINCTIVE} digits: looked for in users' columns and keys only, "
                "since such numbers are in every file"
            )
        for one in self.unread:
            yield f"not searched: {one.file} ({one.reason})"
        if self.unread:
            yield f"the search is not complete: {len(self.unread)} files could not be read"

    def as_fact(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "users": self.users,
            "kept": self.kept,
            "files": self.files,
            "complete": not self.unread,
            "traces": [vars(one) for one in self.traces],
            "unread": [vars(one) for one in self.unread],
        }


def run(config: Config, users: ForgetList) -> ErasureReport:
    """Searches the run's folder and the registry.

    Raises:
        SchemaError: a line of the list is no user id, or a folder does not exist.
        ArtifactError: the kept list cannot be read.
    """
    folder = config.work / FEATURES
    ids = users.ids(_id_type(config, folder))
    distinct = ids.unique()
    schema = config.schema_only()
    found = search(_places(config), distinct.to_pylist(), IdColumns.of(schema.model_dump(mode="json")))
    return ErasureReport(
        users=len(distinct),
        kept=int(kept_list(folder).holds(distinct).sum()),
        files=found.files,
        traces=found.traces,
        unread=found.unread,
        untraced=_untraced(users, ids, found),
        short=sum(is_short(str(one)) for one in distinct.to_pylist()),
    )


def _id_type(config: Config, features: Path) -> pa.DataType:
    """As declared, else as the features have them; without either any line is an id."""
    declared = id_type(config.ids.user)
    if declared is not None:
        return declared.arrow
    try:
        return id_type_of(features)
    except ArtifactError:
        return pa.string()


def _untraced(users: ForgetList, ids: pa.Array, found: Search) -> str:
    traced = {user for trace in found.traces for user in trace.users + trace.possible}
    lines = zip(users.lines, ids.to_pylist(), strict=True)
    return users.named([line.number for line, one in lines if str(one) not in traced])


def _places(config: Config) -> list[Path | str]:
    """The run's folder, the registry unless it is below it, and this machine's copies of an object store's versions."""
    if "://" not in config.registry:
        registry = Path(config.registry)
        inside = registry.resolve().is_relative_to(config.work.resolve())
        return [config.work] if inside or not registry.exists() else [config.work, registry]
    store = open_store(config.registry)
    copies = [store.cache] if isinstance(store, ObjectStore) and store.cache.is_dir() else []
    return [config.work, config.registry, *copies]
