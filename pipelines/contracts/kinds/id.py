"""The kind ``id``: the user's or item's own id."""

from __future__ import annotations

from typing import ClassVar, Literal

from pipelines.contracts.kinds.coded import OneCode


class IdFeature(OneCode):
    """The user's or item's own id: a learned row for each id that the train window has seen often enough."""

    kind: Literal["id"]

    # Without a table of their side, ids are known from the events.
    needs_table: ClassVar[bool] = False
