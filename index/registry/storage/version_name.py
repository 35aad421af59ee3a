"""Names of versions: UTC time and the start of the fingerprint, as 20261128T021500Z-9eb676cc. They sort by age."""

from __future__ import annotations

import datetime
import re

from pipelines.contracts.files import file_name

_TIME = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"(\d{8}T\d{6}Z)-[0-9a-f]+", re.ASCII)


def new_name(moment: datetime.datetime, fingerprint: str) -> str:
    """The name of a version that is published at a moment (UTC)."""
    return f"{moment.strftime(_TIME)}-{fingerprint[:8]}"


def moment_of(name: str) -> datetime.datetime | None:
    """The moment (UTC) in a version's name; None if it is no version's name."""
    match = _NAME.fullmatch(name)
    try:
        return match and datetime.datetime.strptime(match[1], _TIME).replace(tzinfo=datetime.UTC)
    except ValueError:
        return None


def can_be_name(name: str) -> bool:
    """Whether a text read from outside, or given by a person, is the name of one folder and leads nowhere else."""
    try:
        return "/" not in file_name(name) and name == name.strip()
    except ValueError:
        return False
