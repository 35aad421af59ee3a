"""The towers of a chain, and the vectors that its item tower gives the catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.contracts.manifest import read_manifest
from towerline.config import Config
from towerline.jobs.stages.chain import BACKTEST, EMBEDDINGS, FEATURES, MODEL, NIGHT
from towerline.jobs.stages.stage import Stage, StageCall


@dataclass(frozen=True)
class TrainStage(Stage):
    """Features to towers (TensorFlow)."""

    verb, artifact, reads = "train", MODEL, (FEATURES,)

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

        config, features = call.config, call.folder(self.chain.folder(FEATURES))
        job.run(
            features,
            config.towers,
            call.folder(self.folder),
            seed=config.seed,
            progress=call.progress,
            mined=mine(config, features, call.progress, whole=self.chain is NIGHT),
            warm=call.warm,
            epochs=self._epochs(call),
        )

    def _epochs(self, call: StageCall) -> int | None:
        """The night learns for as many epochs as its backtest found best; the others look for the best epoch."""
        from towers.training.warm_start import epochs_found

        if self.chain is not NIGHT or call.warm is not None:
            return None
        return epochs_found(read_manifest(call.folder(BACKTEST.folder(MODEL))))


@dataclass(frozen=True)
class EmbedStage(Stage):
    """Model and items to item vectors (Beam)."""

    verb, artifact, reads = "embed", EMBEDDINGS, (MODEL, FEATURES)

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

        model, features = (call.folder(self.chain.folder(name)) for name in self.reads)
        embedding_job.run(model, features, call.folder(self.folder), call.beam_args, progress=call.progress)
