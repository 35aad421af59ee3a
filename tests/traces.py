"""Traces of users in folders that can be read whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from towerline.jobs.erasure.traces import Trace, search


def find_traces(folders: Sequence[Path], users: Sequence[int | str]) -> list[Trace]:
    """What the search finds; every file must be readable."""
    found = search(folders, users)
    assert found.unread == ()
    return list(found.traces)
