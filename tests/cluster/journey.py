"""Complete Journey through features, embed and candidates: what runs here must come out the same on a cluster.

The towers are trained for a moment only: what they have learned does not matter, what they answer does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import xxhash

from index.building import embedding_job as embed
from index.registry.registry import Registry
from pipelines import complete_journey
from pipelines.features import job as features
from towerline.config import Config, load_config
from towerline.jobs import candidates as candidates_job

CONFIG = Path(__file__).parents[2] / "configs" / "complete_journey.toml"
PARTITIONS = 12
CANDIDATES = 50
_SETTINGS = ("history.max_length=50", "towers.embedding_dim=16", "towers.epochs=1", "towers.min_steps=4")
_SETTINGS += ("towers.refit=false", "towers.uniform_negatives=64", "index.engine=exact")


@dataclass(frozen=True)
class Journey:
    """A folder with the data set's tables, and after ``run_local`` everything that a local night makes."""

    root: Path

    @property
    def config(self) -> Config:
        """The committed configuration, on these tables and with small towers."""
        paths = [f"tables.{name}.path={self.root / 'tables' / name}.parquet" for name in ("events", "items", "users")]
        return load_config(CONFIG, [*_SETTINGS, *paths], self.root)

    def write_tables(self) -> None:
        """Writes the three tables."""
        complete_journey.write_tables(self.root / "tables")

    def run_local(self) -> None:
        """Features, model, embeddings, bundle, registry and candidates, below ``root``."""
        from index.building import job as build  # TensorFlow comes with these two: not where the tests are only listed.
        from towers.training import job as training

        config, root = self.config, self.root
        self.features(root / "features", ())
        training.run(root / "features", config.towers, root / "model")
        self.embeddings(root / "embeddings", ())
        build.run(root / "embeddings", root / "model", root / "features", config.index, root / "bundle")
        Registry(str(root / "registry")).publish(root / "bundle")
        self.candidates(root / "candidates", ())

    def features(self, out: Path, beam_args: Sequence[str]) -> Path:
        """Runs the features job."""
        return features.run(self.config.schema_only(), out, beam_args, partitions=PARTITIONS)

    def embeddings(self, out: Path, beam_args: Sequence[str]) -> Path:
        """Embeds the items of the local features with the local model."""
        return embed.run(self.root / "model", self.root / "features", out, beam_args)

    def candidates(self, out: Path, beam_args: Sequence[str]) -> Path:
        """Candidates of every household from the local registry."""
        return candidates_job.run(str(self.root / "registry"), out, k=CANDIDATES, beam_args=beam_args)


FEATURE_FOLDERS = ("sequences", "users", "items", "users_encoded", "items_encoded")


def rows_hash(files: Iterable[Path]) -> str:
    """A hash of the rows of Parquet files in sorted order, whatever the files' number and order."""
    rows = sorted(
        xxhash.xxh3_128_digest(repr(row)) for file in files for row in pq.ParquetFile(file).read().to_pylist()
    )
    return xxhash.xxh3_128_hexdigest(b"".join(rows))


def features_hash(out: Path) -> dict[str, str]:
    """For each folder of rows a hash of them, and for the vocabulary one of each file."""
    folders = {name: rows_hash((out / name).glob("part-*.parquet")) for name in FEATURE_FOLDERS}
    files = {path.name: xxhash.xxh3_128_hexdigest(path.read_bytes()) for path in (out / "vocabulary").iterdir()}
    return {**folders, **files}
