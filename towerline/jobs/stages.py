"""The stages of a night, each once: its folder, what it is made from, and what it runs.

``features`` reads the tables, ``train`` the features, ``embed`` the model and the features, ``build`` all three. The
single verbs and the nightly job use the same table. The modules that do the work are imported when a stage runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipelines.contracts.manifest import is_current, read_manifest
from pipelines.features.kept_list import NOBODY
from pipelines.progress import SILENT, Progress
from pipelines.tables.erasure.forget_list import ForgetList
from towerline.config import Config
from towerline.jobs.extras import Need

if TYPE_CHECKING:
    from towers.training.warm_start import WarmStart

FEATURES, MODEL, EMBEDDINGS, BUNDLE = "features", "model", "embeddings", "bundle"


@dataclass(frozen=True)
class StageCall:
    """How one stage is run.

    beam_args: for Beam, unchanged. previous: an earlier features artifact, whose events are not read again. forget:
    users to erase; remember: users to take off the list of those. warm: an earlier model to go on from.
    """

    config: Config
    beam_args: tuple[str, ...] = ()
    progress: Progress = SILENT
    previous: Path | None = None
    forget: ForgetList = NOBODY
    remember: ForgetList = NOBODY
    warm: WarmStart | None = None

    def folder(self, name: str) -> Path:
        """The folder of a stage's artifact."""
        return self.config.work / name


class Stage(ABC):
    """One stage. verb: what runs it alone. folder: of its artifact, below the run's. reads: folders of earlier ones."""

    verb: ClassVar[Need]
    folder: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ()

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
        return {name: read_manifest(config.work / name).fingerprint for name in self.reads}

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


class FeaturesStage(Stage):
    """Tables to features (Beam)."""

    verb, folder = "features", FEATURES

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
        from pipelines.features.kept_list import forgotten_by, kept_list

        folder = config.work / self.folder
        return super().is_current(config) and forgotten_by(folder).covers(kept_list(folder))

    def has_done(self, call: StageCall) -> bool:
        """Whether the features that are there leave out all who are to be forgotten, and none who is to be remembered.

        Raises:
            SchemaError: a line of the lists is no user id.
        """
        from pipelines.features.kept_list import forgotten_by, id_type_of

        if not len(call.forget) and not len(call.remember):
            return True
        folder = call.folder(self.folder)
        forgotten, id_type = forgotten_by(folder), id_type_of(folder)
        remembered = forgotten.holds(call.remember.ids(id_type))
        return bool(forgotten.holds(call.forget.ids(id_type)).all() and not remembered.any())

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
            call.folder(FEATURES),
            call.beam_args,
            progress=call.progress,
            previous=call.previous,
            forget=call.forget,
            remember=call.remember,
            delta_sequence=delta_sequence,
        )


class TrainStage(Stage):
    """Features to towers (TensorFlow)."""

    verb, folder, reads = "train", MODEL, (FEATURES,)

    def identity(self) -> tuple[str, int]:
        """Kind and format version of the artifact."""
        from towers.training import job

        return job.KIND, job.FORMAT_VERSION

    def settings(self, config: Config) -> dict[str, Any]:
        """``[towers]`` except the ranges of ``tune``, and the seed."""
        return {"towers": config.towers.model_dump(mode="json", exclude={"tune"}), "seed": config.seed}

    def run(self, call: StageCall) -> None:
        """Writes the artifact."""
        from towerline.jobs.hard_negatives import mine
        from towers.training import job

        config, features = call.config, call.folder(FEATURES)
        job.run(
            features,
            config.towers,
            call.folder(MODEL),
            seed=config.seed,
            progress=call.progress,
            mined=mine(config, features, call.progress),
            warm=call.warm,
        )


class EmbedStage(Stage):
    """Model and items to item vectors (Beam)."""

    verb, folder, reads = "embed", EMBEDDINGS, (MODEL, FEATURES)

    def identity(self) -> tuple[str, int]:
        """Kind and format version of the artifact."""
        from index.building import embedding_job

        return embedding_job.KIND, embedding_job.FORMAT_VERSION

    def settings(self, config: Config) -> dict[str, Any]:  # noqa: ARG002
        """Nothing: the vectors follow from the model and the items."""
        return {}

    def run(self, call: StageCall) -> None:
        """Writes the artifact."""
        from index.building import embedding_job

        folders = call.folder(MODEL), call.folder(FEATURES), call.folder(EMBEDDINGS)
        embedding_job.run(*folders, call.beam_args, progress=call.progress)


class BuildStage(Stage):
    """Item vectors to a bundle (ScaNN)."""

    verb, folder, reads = "build", BUNDLE, (EMBEDDINGS, MODEL, FEATURES)

    def identity(self) -> tuple[str, int]:
        """Kind and format version of the artifact."""
        from index.registry import bundle

        return bundle.KIND, bundle.FORMAT_VERSION

    def settings(self, config: Config) -> dict[str, Any]:
        """``[index]`` and ``[retriever]``."""
        from index.building import job

        return job.config_of(config.index, config.retriever)

    def run(self, call: StageCall) -> None:
        """Writes the artifact."""
        from index.building import job

        config = call.config
        job.run(
            call.folder(EMBEDDINGS),
            call.folder(MODEL),
            call.folder(FEATURES),
            config.index,
            call.folder(BUNDLE),
            retriever=config.retriever,
            beam_args=call.beam_args,
            progress=call.progress,
        )


FEATURES_STAGE, TRAIN_STAGE, EMBED_STAGE, BUILD_STAGE = FeaturesStage(), TrainStage(), EmbedStage(), BuildStage()
STAGES: tuple[Stage, ...] = (FEATURES_STAGE, TRAIN_STAGE, EMBED_STAGE, BUILD_STAGE)
