"""The plan of a replay: its folders, the configuration of each night, and what must not change between its runs."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.contracts.errors import ConfigError
from pipelines.features.planning import Inputs
from pipelines.tables.erasure.kept_list import kept_list
from towerline.config import Config, Paths, plain
from towerline.jobs.replay.day_files import DayFiles
from towerline.jobs.stages import FEATURES
from towerline.settings import AlertsSettings

REPLAY = "replay"
# Sections and keys that may differ from one run of a replay to the next: they change no night.
_FREE = ("paths", "alerts", "evaluation")


@dataclass(frozen=True)
class Plan:
    """A replay of ``nights`` nights from the date ``first`` on. Night i sees the days before ``first`` + i."""

    config: Config
    first: datetime.date
    nights: int

    @property
    def folder(self) -> Path:
        """Everything of the replay is below it."""
        return self.config.work / REPLAY

    @property
    def work(self) -> Path:
        """The run's folder of the nights."""
        return self.folder / "run"

    @property
    def registry(self) -> str:
        """The nights' registry, always a folder."""
        return str((self.folder / "registry").absolute())

    def date(self, night: int) -> datetime.date:
        """The date of a night: the first day that it does not see."""
        return self.first + datetime.timedelta(days=night)

    def midnight(self, night: int) -> datetime.datetime:
        """The beginning of that day, UTC."""
        day = self.date(night)
        return datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC)

    def config_of(self, events: Path) -> Config:
        """The configuration of the nights, whose events are in a folder.

        What belongs to the real nights is left out: their folders, alerts and reports.
        """
        source = self.config.tables.events.model_copy(update={"path": str(events.absolute()), "format": "parquet"})
        return self.config.model_copy(
            update={
                "paths": Paths(work=self.work.absolute(), registry=self.registry),
                "tables": self.config.tables.model_copy(update={"events": source}),
                "alerts": AlertsSettings(),
                "refresh": self.config.refresh.model_copy(update={"evaluate": False, "lock_wait_minutes": 0.0}),
            }
        )

    def identity(self) -> dict[str, Any]:
        """What the nights depend on, apart from their number: configuration, first date, tables, forgotten users."""
        config = {name: value for name, value in plain(self.config).items() if name not in _FREE}
        tables = Inputs.find(self.config.schema_only()).fingerprints()
        forgotten = len(kept_list(self.config.work / FEATURES))
        return {"config": config, "from": self.first.isoformat(), "tables": tables, "forgotten_users": forgotten}

    def require_days(self, days: DayFiles) -> None:
        """Checks that the first night has events to learn from and the last one a day to be measured on.

        Raises:
            ConfigError: it has not; the message has the dates.
        """
        if self.first <= days.first:
            raise ConfigError(
                f"--from {self.first}: expected a day after the first event, which is of {days.first}. The first night "
                "learns from the days before."
            )
        most = (days.last - self.first).days + 1
        if self.nights > most:
            raise ConfigError(
                f"--nights {self.nights}: expected at most {max(most, 0)} from {self.first} on, because the last event "
                f"is of {days.last}. Each night is measured on the day after it."
            )


def require_rolling(config: Config) -> None:
    """Checks that the data set can be replayed: its windows roll, and so its events have a time.

    Raises:
        ConfigError: it cannot.
    """
    if not config.split.rolls:
        raise ConfigError(
            "split: expected windows that roll, because a night with fixed dates never learns from the newest events. "
            "Write valid_days and test_days there, or give --set 'split={valid_days = 7, test_days = 7}'."
        )
