"""Rebuilds the live version with the changes of the log folded in: dead items go, fresh ones move into the tree.

Reads the live version and the registry's log; writes a bundle and publishes it. Nothing is trained or tuned: towers,
vocabulary codes, the scale of the value and the tree's settings stay, so the vectors stay in their space and no answer
changes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from index.building.sharding_job import ShardsJob
from index.building.vector_statistics import vector_statistics
from index.inference.item_embedder import ItemEmbedder
from index.inference.item_features import write_item_features
from index.inference.item_rows import write_items
from index.registry.bundle import (
    FORMAT_VERSION,
    ITEM_FEATURES_FILE,
    ITEMS_FILE,
    KIND,
    POPULARITY_FILE,
    PROBES_DIR,
    SCANN_DIR,
    SEARCHER_FILE,
    VOCABULARY_DIR,
    Bundle,
    Probes,
    save_probes,
)
from index.registry.delta_log import DeltaLog
from index.registry.deltas import DeltaState
from index.registry.registry import Registry, unless_moved
from index.search.exact import VECTORS_FILE, ExactSearcher
from index.search.projection import Projection
from index.search.scann_tree import LEAST_ITEMS, ScannSearcher
from index.search.searcher import Scores, Vectors
from index.search.shards import shard_name
from index.search.value_tree import VALUE_DIR, augmented, save_value
from index.settings import TreeSettings
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import write_artifact
from pipelines.contracts.vocabulary import Vocabulary
from pipelines.progress import SILENT, Progress

# All but these is copied.
_REBUILT = (
    *(VOCABULARY_DIR, VECTORS_FILE, ITEMS_FILE, ITEM_FEATURES_FILE, SCANN_DIR, VALUE_DIR, SEARCHER_FILE, PROBES_DIR),
    *(POPULARITY_FILE, "manifest.json"),
)
# Rows whose features are in memory at a time.
_BLOCK_ROWS = 1 << 17


def run(registry: str | Path, out: Path, *, keep: int | None = None, progress: Progress = SILENT) -> str:
    """Builds and publishes; returns the new version's name.

    Args:
        registry: a folder or an fsspec URL.
        out: where the staged bundle goes.
        keep: number of versions to keep; None keeps all.
        progress: shows that the index is being built.

    Raises:
        ArtifactError: nothing is live, the version is damaged, or no item is live.
        MovedError: another version became live meanwhile, three times.
    """
    opened = Registry(registry)
    with progress.waiting("compact"):
        return unless_moved(lambda: _compacted(opened, out, keep))


def _compacted(registry: Registry, out: Path, keep: int | None) -> str:
    live = registry.open()
    state = DeltaState.opened(live.bundle, DeltaLog(registry.store), ItemEmbedder(live.bundle))
    write_bundle(state, live.version, out)
    # Changes made while the bundle was being built have later numbers in the log, and so have the next ones.
    return registry.publish(out, keep=keep, instead_of=live.version)


def write_bundle(state: DeltaState, version: str, out: Path) -> Path:
    """Writes the state's bundle with the state folded in. Paused ads stay in the catalogue: the log pauses them.

    Raises:
        ArtifactError: no item lives.
    """
    bundle = state.bundle
    rows = _living_rows(state)
    if len(rows) == 0:
        raise ArtifactError(f"{bundle.dir}: every item was removed: there is nothing left to build from.")
    vectors = np.concatenate([bundle.vectors, state.fresh_vectors])[rows]
    folded = {
        **bundle.manifest.facts,
        **vector_statistics(vectors),
        "compacted_from": version,
        "delta_sequence": max(state.sequence, bundle.delta_sequence),
        "as_of_us": bundle.as_of_us,
    }
    with write_artifact(
        out,
        kind=KIND,
        format_version=FORMAT_VERSION,
        inputs={**bundle.manifest.inputs, "bundle": bundle.manifest.fingerprint},
        config=bundle.manifest.config,
    ) as draft:
        shutil.copytree(
            bundle.dir, draft.dir, dirs_exist_ok=True, ignore=lambda folder, _: _not_copied(folder, bundle.dir)
        )
        _vocabulary(state, rows).save(draft.dir / VOCABULARY_DIR)
        np.save(draft.dir / VECTORS_FILE, vectors)
        np.save(draft.dir / POPULARITY_FILE, state.popularity[rows])
        items = pa.concat_tables([bundle.items, state.fresh_items]).take(pa.array(rows))
        write_items(items, draft.dir / ITEMS_FILE)
        write_item_features(state.fresh.features.schema, _features(state, rows), draft.dir / ITEM_FEATURES_FILE)
        log_values = None if state.log_values is None else state.log_values[rows]
        _write_searcher(bundle, vectors, log_values, draft.dir)
        _write_probes(bundle.probes, vectors, draft.dir)
        draft.facts.update(folded)
    return out


def _not_copied(folder: str, root: Path) -> set[str]:
    return set(_REBUILT) if Path(folder) == root else set()


def _living_rows(state: DeltaState) -> npt.NDArray[np.int64]:
    """Rows that are not gone, in the order of their ids, as in every catalogue."""
    rows = np.flatnonzero(~state.gone)
    order = pc.sort_indices(state.item_ids().take(pa.array(rows)))
    ordered: npt.NDArray[np.int64] = rows[np.asarray(order)]
    return ordered


def _features(state: DeltaState, rows: npt.NDArray[np.int64]) -> Iterator[pa.Table]:
    for start in range(0, len(rows), _BLOCK_ROWS):
        yield state.known(rows[start : start + _BLOCK_ROWS]).features


def _vocabulary(state: DeltaState, rows: npt.NDArray[np.int64]) -> Vocabulary:
    kept = state.bundle.vocabulary
    return Vocabulary(kept.user, kept.item, state.item_ids().take(pa.array(rows)), state.frequency[rows])


def _write_searcher(bundle: Bundle, vectors: Vectors, log_values: Scores | None, target: Path) -> None:
    """As in the live version; exact search if too few items are left for its trees."""
    searched = vectors
    if bundle.value is not None and log_values is not None:
        value = bundle.value.spec
        searched = augmented(vectors, log_values, value.scale, value.center)
        save_value(target, value, log_values, searched)
    spec = bundle.spec
    tree, fewest = spec.tree, len(vectors) // spec.shards
    if tree is None or spec.engine == "exact" or tree.leaves > fewest or fewest < LEAST_ITEMS:
        spec = spec.model_copy(update={"engine": "exact", "tree": None, "shards": 1})
    elif spec.shards > 1:
        ShardsJob(target / VECTORS_FILE, target / SCANN_DIR, spec.shards).build(
            tree, _projection(bundle.dir / SCANN_DIR / shard_name(0), tree)
        )
    else:
        (target / SCANN_DIR).mkdir()
        projection = _projection(bundle.dir / SCANN_DIR, tree)
        ScannSearcher.build(searched, tree, projection=projection).save(target / SCANN_DIR)
    (target / SEARCHER_FILE).write_text(spec.model_dump_json(indent=2))


def _projection(directory: Path, tree: TreeSettings) -> Projection | None:
    """That of the live tree: it is the users', who stay."""
    return None if tree.projection is None else Projection.load(directory)


def _write_probes(probes: Probes, vectors: Vectors, target: Path) -> None:
    """The same users' vectors with their answers from the new catalogue.

    The records are left out: an item of a history may be gone, and then the record's vector would differ.
    """
    k = probes.neighbors.rows.shape[1]
    found = ExactSearcher(vectors, checked=True).search_batch(probes.vectors, k)
    records: tuple[dict[str, Any], ...] = tuple({} for _ in probes.records)
    save_probes(Probes(records, probes.vectors, found), target / PROBES_DIR)
