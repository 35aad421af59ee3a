"""The bundle of a chain: for the backtest with exact search, for the night with the backtest's inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.registry.bundle import BACKTEST_DIR, Bundle
from index.registry.registry import Registry
from index.settings import IndexSettings
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import read_manifest
from towerline.config import Config
from towerline.jobs.stages.chain import BACKTEST, BUNDLE, EMBEDDINGS, FEATURES, MODEL, NIGHT
from towerline.jobs.stages.stage import Stage, StageCall


@dataclass(frozen=True)
class BuildStage(Stage):
    """Item vectors to a bundle (ScaNN)."""

    verb, artifact, reads = "build", BUNDLE, (EMBEDDINGS, MODEL, FEATURES)

    def identity(self) -> tuple[str, int]:
        """Kind and format version of the artifact."""
        from index.registry import bundle

        return bundle.KIND, bundle.FORMAT_VERSION

    def settings(self, config: Config) -> dict[str, Any]:
        """``[index]`` and ``[retriever]``."""
        from index.building import job

        return job.config_of(self._index(config), config.retriever)

    def inputs(self, config: Config) -> dict[str, str]:
        """Fingerprints of what the stage reads: for the night, of the backtest's bundle too.

        Raises:
            ArtifactError: an earlier stage has not run.
        """
        backtest = self._backtest(config.work)
        inside = {} if backtest is None else {BACKTEST_DIR: read_manifest(backtest).fingerprint}
        return super().inputs(config) | inside

    def run(self, call: StageCall) -> None:
        """Writes the artifact."""
        from index.building import job

        config = call.config
        embeddings, model, features = (call.folder(self.chain.folder(name)) for name in self.reads)
        job.run(
            embeddings,
            model,
            features,
            self._index(config),
            call.folder(self.folder),
            retriever=config.retriever,
            beam_args=call.beam_args,
            progress=call.progress,
            backtest=self._backtest(config.work),
            last=None if self.chain is BACKTEST else _live(config),
        )

    def _backtest(self, work: Path) -> Path | None:
        """The bundle to put inside this one."""
        return work / BACKTEST.folder(BUNDLE) if self.chain is NIGHT else None

    def _index(self, config: Config) -> IndexSettings:
        """``[index]``; a backtest is asked for figures only, so exact search is fast enough and needs no tuning."""
        if self.chain is not BACKTEST:
            return config.index
        return config.index.model_copy(update={"engine": "exact", "tree": None, "shards": 1})


def _live(config: Config) -> Bundle | None:
    """The live version; None where there is none, or none that can be opened."""
    try:
        registry = Registry(config.registry)
        return None if registry.current_or_none() is None else registry.open(verify=False).bundle
    except ArtifactError:
        return None
