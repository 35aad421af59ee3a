"""A stage of a night: its folder, what it is made from, whether that is current, and how it is run."""

from __future__ import annotations

import datetime
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipelines.contracts.manifest import is_current, read_manifest
from pipelines.progress import SILENT, Progress
from pipelines.tables.erasure.forget_list import ForgetList
from pipelines.tables.erasure.kept_list import NOBODY
from towerline.config import Config
from towerline.jobs.extras import Need
from towerline.jobs.stages.chain import ONLY, Chain

if TYPE_CHECKING:
    from towers.training.warm_start import WarmStart


@dataclass(frozen=True)
class StageCall:
    """How one stage is run.

    beam_args: for Beam, unchanged. previous: an earlier features artifact, whose events are not read again. forget:
    users to erase; remember: users to take off the list of those. as_of: with rolling windows, the day at whose start
    they end; None: the day after the newest event's. warm: an earlier model to go on from.
    """

    config: Config
    beam_args: tuple[str, ...] = ()
    progress: Progress = SILENT
    previous: Path | None = None
    forget: ForgetList = NOBODY
    remember: ForgetList = NOBODY
    as_of: datetime.datetime | None = None
    warm: WarmStart | None = None

    def folder(self, name: str) -> Path:
        """The folder of a stage's artifact."""
        return self.config.work / name


@dataclass(frozen=True)
class Stage(ABC):
    """One stage. verb: what runs it alone. artifact: what it writes. reads: artifacts of the same chain."""

    verb: ClassVar[Need]
    artifact: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()

    chain: Chain = ONLY

    @property
    def folder(self) -> str:
        """Where its artifact is, below the run's folder."""
        return self.chain.folder(self.artifact)

    @property
    def title(self) -> str:
        """For the terminal."""
        return self.verb if self.chain is ONLY else f"{self.verb} ({self.chain.name})"

    @abstractmethod
    def identity(self) -> tuple[str, int]:
        """Kind and format version of the artifact."""

    @abstractmethod
    def settings(self, config: Config) -> dict[str, Any]:
        """What the artifact depends on, apart from its inputs, as in its manifest."""

    @abstractmethod
    def run(self, call: StageCall) -> None:
        """Writes the artifact."""

    def inputs(self, config: Config) -> dict[str, str]:
        """Fingerprints of what the stage reads.

        Raises:
            ArtifactError: an earlier stage has not run.
        """
        folders = {name: config.work / self.chain.folder(name) for name in self.reads}
        return {name: read_manifest(folder).fingerprint for name, folder in folders.items()}

    def is_current(self, config: Config) -> bool:
        """Whether the artifact that is there was made from the same inputs with the same settings."""
        kind, format_version = self.identity()
        return is_current(
            config.work / self.folder,
            kind=kind,
            format_version=format_version,
            inputs=self.inputs(config),
            config=self.settings(config),
        )
