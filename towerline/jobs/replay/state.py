"""The state of a replay: what its earlier runs have done, so that the same command goes on where one was stopped.

One JSON file that is replaced as a whole after every night. It knows what it was made with; another configuration is
refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from index.evaluation.sections.part import Part
from pipelines.contracts.errors import ArtifactError, ConfigError
from pipelines.contracts.manifest import write_durably
from towerline.jobs.replay.rows import NightRow

STATE_FILE = "state.json"
_FORMAT = 1


class State(Part):
    """What is done.

    identity: what all nights depend on. nights: the finished ones. begun: the night that was begun last. seconds: of
    all runs so far. frozen, weekly, before: names of the versions that the next night is compared with, None before
    the first one is live.
    """

    format_version: int = _FORMAT
    identity: dict[str, Any]
    nights: tuple[NightRow, ...] = ()
    begun: int | None = None
    seconds: float = 0.0
    frozen: str | None = None
    weekly: str | None = None
    before: str | None = None

    @classmethod
    def open(cls, folder: Path, identity: dict[str, Any]) -> Self:
        """The state below a folder; an empty one if there is none.

        Raises:
            ConfigError: it was made with another configuration, first date or tables; the message names what differs.
            ArtifactError: the file is damaged.
        """
        file = folder / STATE_FILE
        identity = json.loads(json.dumps(identity))
        if not file.is_file():
            return cls(identity=identity)
        try:
            state = cls.model_validate_json(file.read_bytes())
        except (ValidationError, OSError) as err:
            raise ArtifactError(f"{file}: damaged ({err}). Remove {folder} and run the replay again.") from err
        different = sorted(_differences(state.identity, identity))
        if different or state.format_version != _FORMAT:
            shown = "; ".join(different[:5]) or f"format {state.format_version}, expected {_FORMAT}"
            raise ConfigError(
                f"{folder} holds {len(state.nights)} nights of another replay: {shown}. Give the same settings to go "
                f"on with it, another --work for a new one, or remove {folder}."
            )
        return state

    def write(self, folder: Path) -> None:
        """Replaces the file."""
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(folder / STATE_FILE, self.model_dump_json(indent=1).encode())

    def with_night(self, row: NightRow, seconds: float) -> Self:
        """The state after one more night; a weekly rebuild is that of every seventh."""
        rebuilt = row.night % 7 == 0 or self.weekly is None
        return self.model_copy(
            update={
                "nights": (*self.nights, row),
                "seconds": self.seconds + seconds,
                "frozen": self.frozen or row.version,
                "weekly": row.version if rebuilt else self.weekly,
                "before": row.version,
            }
        )

    @property
    def versions(self) -> set[str]:
        """The versions that later nights need."""
        return {one for one in (self.frozen, self.weekly, self.before) if one is not None}


def _differences(there: Any, now: Any, place: str = "") -> list[str]:
    """What differs, as "place: there, now"."""
    if isinstance(there, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(there.keys() | now.keys())
            for line in _differences(there.get(key), now.get(key), f"{place}.{key}".strip("."))
        ]
    return [] if there == now else [f"{place.removeprefix('config.')}: {there!r:.60} there, {now!r:.60} now"]
