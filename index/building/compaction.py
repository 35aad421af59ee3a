"""Rebuilds the live version with its deltas folded in: dead items go, fresh ones move into the tree.

Reads the live version and its log; writes a bundle and publishes it. Nothing is trained or tuned: towers, vocabulary
codes and the tree's settings stay, so the vectors stay in their space.
"""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index.building.sharding_job import ShardsJob
from index.building.vector_statistics import vector_statistics
from index.registry.bundle import (
    FORMAT_VERSION,
    ITEMS_FILE,
    KIND,
    PROBES_DIR,
    SCANN_DIR,
    SEARCHER_FILE,
    VOCABULARY_DIR,
    Bundle,
    Probes,
    save_probes,
)
from index.registry.delta_writer import carry
from index.registry.deltas import DeltaLog, DeltaState, replay
from index.registry.registry import Registry
from index.registry.searcher_spec import SearcherSpec
from index.search.exact import VECTORS_FILE, ExactSearcher
from index.search.scann_tree import LEAST_ITEMS, ScannSearcher
from index.search.searcher import Vectors
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import write_artifact
from pipelines.contracts.vocabulary import Vocabulary
from pipelines.progress import SILENT, Progress

_REBUILT = (VOCABULARY_DIR, VECTORS_FILE, ITEMS_FILE, SCANN_DIR, SEARCHER_FILE, PROBES_DIR, "manifest.json")


def run(registry: str | Path, out: Path, *, keep: int | None = None, progress: Progress = SILENT) -> str:
    """Builds and publishes; returns the new version's name.

    Args:
        registry: a folder or an fsspec URL.
        out: where the staged bundle goes.
        keep: number of versions to keep; None keeps all.
        progress: shows that the index is being built.

    Raises:
        ArtifactError: nothing is live, the version is damaged, or no item is live.
    """
    opened = Registry(registry)
    since = datetime.datetime.now(datetime.UTC).isoformat()
    with progress.waiting("compact"):
        live = opened.open()
        state = replay(live.bundle, DeltaLog(opened.store, live.version))
        write_bundle(live.bundle, state, live.version, out)
        # Changes made while the bundle was being built are copied, with the pauses.
        return opened.publish(out, keep=keep, before_live=lambda name: carry(opened, live.version, name, since))


def write_bundle(bundle: Bundle, state: DeltaState, version: str, out: Path) -> Path:
    """Writes the bundle with the state folded in. Paused ads stay in the catalogue: pauses are copied through the log.

    Raises:
        ArtifactError: no item lives.
    """
    rows = _living_rows(state)
    if len(rows) == 0:
        raise ArtifactError(f"{bundle.dir}: every item was removed: there is nothing left to build from.")
    vectors = np.concatenate([bundle.vectors, state.fresh_vectors])[rows]
    folded = {
        **bundle.manifest.facts,
        **vector_statistics(vectors),
        "compacted_from": version,
        "delta_sequence": state.sequence,
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
        _vocabulary(bundle, state, rows).save(draft.dir / VOCABULARY_DIR)
        np.save(draft.dir / VECTORS_FILE, vectors)
        items = pa.concat_tables([bundle.items, state.fresh_items]).take(pa.array(rows))
        pq.write_table(items, draft.dir / ITEMS_FILE)
        _write_searcher(bundle.spec, vectors, draft.dir)
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


def _vocabulary(bundle: Bundle, state: DeltaState, rows: npt.NDArray[np.int64]) -> Vocabulary:
    kept = bundle.vocabulary
    ids = state.item_ids().take(pa.array(rows))
    before = kept.item_rows(ids)
    frequency = np.where(before >= 0, kept.item_frequency[before], 0)
    return Vocabulary(kept.user, kept.item, ids, frequency.astype(np.int64))


def _write_searcher(spec: SearcherSpec, vectors: Vectors, target: Path) -> None:
    """As in the live version; exact search if too few items are left for its trees."""
    tree, fewest = spec.tree, len(vectors) // spec.shards
    if tree is None or spec.engine == "exact" or tree.leaves > fewest or fewest < LEAST_ITEMS:
        spec = spec.model_copy(update={"engine": "exact", "tree": None, "shards": 1})
    elif spec.shards > 1:
        ShardsJob(target / VECTORS_FILE, target / SCANN_DIR, spec.shards).build(tree)
    else:
        (target / SCANN_DIR).mkdir()
        ScannSearcher.build(vectors, tree).save(target / SCANN_DIR)
    (target / SEARCHER_FILE).write_text(spec.model_dump_json(indent=2))


def _write_probes(probes: Probes, vectors: Vectors, target: Path) -> None:
    """The same users' vectors with their answers from the new catalogue.

    The records are left out: an item of a history may be gone, and then the record's vector would differ.
    """
    k = probes.neighbors.rows.shape[1]
    found = ExactSearcher(vectors, checked=True).search_batch(probes.vectors, k)
    records: tuple[dict[str, Any], ...] = tuple({} for _ in probes.records)
    save_probes(Probes(records, probes.vectors, found), target / PROBES_DIR)
