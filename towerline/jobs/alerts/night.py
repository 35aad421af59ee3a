"""What became of a night, as it is sent to people: success, late, refused by a gate, or failed."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

NightOutcome = Literal["success", "late", "refused", "failed"]
OUTCOMES: tuple[NightOutcome, ...] = ("success", "late", "refused", "failed")
_DAY_SECONDS = 86_400.0


@dataclass(frozen=True)
class Night:
    """One night.

    reason: why it was no success; None of a success. started_at, last_success_at: seconds since the epoch; the latter
    of the last successful night before this one, None if there was none. version: live at the end, None if there is
    none or the registry cannot be read. verdicts: of the gates, as in a version's manifest; none where they were not
    asked.
    """

    dataset: str
    outcome: NightOutcome
    reason: str | None
    started_at: float
    seconds: float
    work: str
    registry: str
    version: str | None = None
    published: bool = False
    verdicts: Sequence[Mapping[str, Any]] = ()
    last_success_at: float | None = None
    host: str = field(default_factory=socket.gethostname)

    def as_json(self) -> dict[str, Any]:
        """As it is sent: times in ISO 8601, UTC."""
        times = {"started_at": _iso(self.started_at), "last_success_at": _iso(self.last_success_at)}
        return {**asdict(self), "verdicts": [dict(verdict) for verdict in self.verdicts], **times}


def why_late(seconds: float, since_success: float | None, late_minutes: float | None) -> str | None:
    """Why a night is late; None if it is not.

    Args:
        seconds: how long it took.
        since_success: seconds from the last successful night to the end of this one; None if there was none.
        late_minutes: as in ``[alerts]``.
    """
    if late_minutes is None:
        return None
    if seconds > 60.0 * late_minutes:
        return f"it took {seconds / 60.0:.1f} minutes, expected at most {late_minutes:g} (alerts.late_minutes)"
    if since_success is not None and since_success > _DAY_SECONDS + 60.0 * late_minutes:
        return (
            f"the last successful night before it ended {since_success / 3600.0:.1f} hours earlier, expected at most "
            f"24 hours and {late_minutes:g} minutes (alerts.late_minutes)"
        )
    return None


def _iso(moment: float | None) -> str | None:
    if moment is None:
        return None
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="seconds")
