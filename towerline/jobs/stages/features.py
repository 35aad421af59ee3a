"""The features of a chain: from the tables, or those of the night from the backtest's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.contracts.manifest import read_manifest
from towerline.config import Config
from towerline.jobs.stages.chain import BACKTEST, FEATURES
from towerline.jobs.stages.stage import Stage, StageCall


@dataclass(frozen=True)
class FeaturesStage(Stage):
    """Tables to features (Beam)."""

    verb, artifact = "features", FEATURES

    def identity(self) -> tuple[str, int]:
        """Kind and format version of the artifact."""
        from pipelines.features import job

        return job.KIND, job.FORMAT_VERSION

    def inputs(self, config: Config) -> dict[str, str]:
        """Fingerprints of the tables.

        Raises:
            SchemaError: a path matches nothing or cannot be reached.
        """
        from pipelines.features import job

        return job.Inputs.find(config.schema_only(), config.work / self.folder).fingerprints()

    def is_current(self, config: Config) -> bool:
        """Whether the features are made from these tables, without everyone who was to be forgotten."""
        from pipelines.tables.erasure.kept_list import forgotten_by, kept_list

        folder = config.work / self.folder
        return super().is_current(config) and forgotten_by(folder).covers(kept_list(folder))

    def has_done(self, call: StageCall) -> bool:
        """Whether the features that are there end where they should, and leave out all who are to be forgotten and none
        who is to be remembered.

        Raises:
            ConfigError: the day of the end is given, and the windows do not roll.
            SchemaError: a line of the lists is no user id.
        """
        from pipelines.tables.erasure.kept_list import forgotten_by, id_type_of

        if not self._ends_right(call):
            return False
        if not len(call.forget) and not len(call.remember):
            return True
        folder = call.folder(self.folder)
        forgotten, id_type = forgotten_by(folder), id_type_of(folder)
        remembered = forgotten.holds(call.remember.ids(id_type))
        return bool(forgotten.holds(call.forget.ids(id_type)).all() and not remembered.any())

    def _ends_right(self, call: StageCall) -> bool:
        """Whether rolling windows end on the day asked for, or after the newest event."""
        from pipelines.features.job import roll_of

        roll = roll_of(call.config.schema_only(), call.as_of, None)
        return roll is None or roll.is_met_by(read_manifest(call.folder(self.folder)).facts)

    def settings(self, config: Config) -> dict[str, Any]:
        """The data set's schema."""
        return config.schema_only().model_dump(mode="json")

    def run(self, call: StageCall) -> None:
        """Writes the artifact. Changes of ads that the log has before the tables are read are in the tables."""
        from index.registry.delta_log import DeltaLog
        from index.registry.storage.store import open_store
        from pipelines.features import job

        delta_sequence = DeltaLog(open_store(call.config.registry)).last()
        job.run(
            call.config.schema_only(),
            call.folder(self.folder),
            call.beam_args,
            progress=call.progress,
            previous=call.previous,
            forget=call.forget,
            remember=call.remember,
            delta_sequence=delta_sequence,
            as_of=call.as_of,
        )


@dataclass(frozen=True)
class NightFeaturesStage(FeaturesStage):
    """The backtest's features to those of the night: the same events, and all of them are learned from."""

    def inputs(self, config: Config) -> dict[str, str]:
        """Fingerprint of the backtest's features.

        Raises:
            ArtifactError: they are not there yet.
        """
        return {FEATURES: read_manifest(config.work / BACKTEST.folder(FEATURES)).fingerprint}

    def is_current(self, config: Config) -> bool:
        """Whether they are made from the backtest's features, which know who is forgotten."""
        return Stage.is_current(self, config)

    def has_done(self, call: StageCall) -> bool:  # noqa: ARG002
        """Whatever was asked of the backtest's features."""
        return True

    def run(self, call: StageCall) -> None:
        """Writes the artifact. No table is read again, so the log of changes is where it was."""
        from pipelines.features import job

        backtest = call.folder(BACKTEST.folder(FEATURES))
        job.run(
            call.config.schema_only(),
            call.folder(self.folder),
            call.beam_args,
            progress=call.progress,
            previous=backtest,
            delta_sequence=int(read_manifest(backtest).facts["delta_sequence"]),
            whole=True,
        )
