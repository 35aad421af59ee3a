"""What became of a forget list: how many of its users the tables had, by the facts of the features made without them.

Reads the list's file and the manifest of the features; writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.contracts.schema import DatasetSchema
from pipelines.tables.erasure.forget_list import ForgetList
from pipelines.tables.erasure.kept_list import NOBODY


def read_list(path: Path | None, schema: DatasetSchema) -> ForgetList:
    """The users that a file names; nobody where there is no file.

    Raises:
        SchemaError: the file cannot be read, or names nobody.
    """
    return NOBODY if path is None else ForgetList.read(path, user_id_columns(schema))


def user_id_columns(schema: DatasetSchema) -> tuple[str, ...]:
    """Names under which the data set's tables and artifacts have a user's id."""
    users = schema.tables.users
    own = () if users is None else (users.user_id,)
    return tuple(dict.fromkeys(["user_id", schema.tables.events.user_id, *own]))


@dataclass(frozen=True)
class ForgetOutcome:
    """What became of a forget list.

    listed: its users, each once. found: those that the tables, or the previous features, had; they were dropped.
    before: others that earlier runs had forgotten. missing: lines of those that nothing had. blank: lines of
    ``missing`` whose ids are found without the blanks around them.
    """

    listed: int
    found: int
    before: int
    missing: tuple[int, ...]
    blank: tuple[int, ...]
    users: ForgetList

    @classmethod
    def of(cls, users: ForgetList, facts: dict[str, Any]) -> ForgetOutcome:
        """From the fact ``forgotten`` in the manifest of the features."""
        missing, blank = tuple(facts["missing_lines"]), tuple(facts["stripped_lines"])
        return cls(facts["listed"], facts["found"], facts["before"], missing, blank, users)

    @classmethod
    def before_all(cls, users: ForgetList) -> ForgetOutcome:
        """Of a list whose users had all been forgotten before."""
        listed = len({line.text for line in users.lines})
        return cls(listed, 0, listed, (), (), users)

    @property
    def line(self) -> str:
        """The outcome in words."""
        if self.before == self.listed:
            return f"forget: all {self.listed} listed users had been forgotten before"
        text = f"forget: {self.found} of {self.listed} listed users were found and dropped"
        if self.before:
            text += f", {self.before} more had been forgotten before"
        if self.missing:
            text += f"; not found: {self.users.named(self.missing)}"
        if self.blank:
            text += f". Without the blanks around it a user: {self.users.named(self.blank)}. Remove the blanks"
        return text

    def as_fact(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "listed": self.listed,
            "found": self.found,
            "before": self.before,
            "missing_lines": list(self.missing),
        }
