"""How soon a delta takes effect at one million items. Writes results/delta_freshness.json.

    python -m benchmarks.delta_freshness

One process applies deltas (a new ad, a pause) while a retriever is queried continuously, as by an ad server. Measured
from the call of ``apply``: the time until the new ad is returned; and from its return: whether the very next call still
shows the paused ad, and how long that call took.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.index_frontier import machine
from index.inference.item_features import write_item_features
from index.registry import delta_writer
from index.registry.bundle import FORMAT_VERSION, ITEM_FEATURES_FILE, ITEM_TOWER_FILE, KIND
from index.registry.registry import Registry
from index.retrieval.retriever import Retriever
from pipelines.contracts.manifest import read_manifest, write_artifact
from tests.index.serving_bundles import write_bundle

RESULTS = Path(__file__).parent / "results" / "delta_freshness.json"
RECORD = {"history": [1000, 1003, 1006, 1009], "country": "US", "age": 30}
REPEATS = 10


def with_item_tower(source: Path, out: Path) -> Path:
    """The bundle with an item tower that gives every new ad (code 1) a vector of length 3 in the direction of the
    record's user, so that it comes first in the answer."""
    import tensorflow as tf

    user = Retriever.open(source).embed(RECORD)
    table = np.stack([np.zeros_like(user), 3 * user / np.linalg.norm(user)]).astype(np.float32)

    class Tower(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="item_id")])
        def vectors(self, item_id):  # type: ignore[no-untyped-def]
            return {"vectors": tf.gather(tf.constant(table), tf.minimum(item_id, 1))}

    tower = Tower()
    saved = out.parent / "saved"
    tf.saved_model.save(tower, str(saved), signatures={"serving_default": tower.vectors})
    converted = tf.lite.TFLiteConverter.from_saved_model(str(saved)).convert()
    inputs = read_manifest(source).inputs
    with write_artifact(out, kind=KIND, format_version=FORMAT_VERSION, inputs=inputs) as draft:
        shutil.copytree(source, draft.dir, dirs_exist_ok=True)
        (draft.dir / "manifest.json").unlink()
        (draft.dir / ITEM_TOWER_FILE).write_bytes(converted)
        # The id is the only feature.
        write_item_features(pa.schema([]), [], draft.dir / ITEM_FEATURES_FILE)
        draft.facts.update(read_manifest(source).facts, as_of_us=0, delta_sequence=0)
    return out


def seconds_until_shown(retriever: Retriever, registry: Registry, item_id: int, k: int) -> float:
    """Seconds from the call of ``apply`` until an answer contains the new ad."""
    started = time.perf_counter()
    delta_writer.apply(registry.url, pa.table({"item_id": [item_id]}))
    while item_id not in retriever.retrieve(RECORD, k).item_ids:
        if time.perf_counter() - started > 60:
            raise SystemExit("the new ad was not returned within a minute")
    return time.perf_counter() - started


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/towerline-delta-freshness"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)
    plain = write_bundle(arguments.folder / "plain", items=arguments.items, dim=arguments.dim, leaves=1000)
    bundle = with_item_tower(plain, arguments.folder / "bundle")
    registry = Registry(arguments.folder / "registry")
    registry.publish(bundle)
    retriever = Retriever.open(registry.url)
    k = 1000
    shown = [seconds_until_shown(retriever, registry, 10 + number, k) for number in range(REPEATS)]
    still_shown, next_call_ms, apply_ms = 0, [], []
    for _ in range(REPEATS):
        first = int(retriever.retrieve(RECORD, 1).item_ids[0])
        started = time.perf_counter()
        delta_writer.apply(registry.url, pa.table({"item_id": [first], "change": ["pause"]}))
        applied = time.perf_counter()
        still_shown += first in retriever.retrieve(RECORD, k).item_ids
        next_call_ms.append(1e3 * (time.perf_counter() - applied))
        apply_ms.append(1e3 * (applied - started))
    result: dict[str, Any] = {
        "items": arguments.items,
        "dim": arguments.dim,
        "new_ad_shown_seconds": {"median": statistics.median(shown), "most": max(shown), "all": shown},
        "paused_still_shown_in_next_call": still_shown,
        "next_call_after_a_pause_ms": {"median": statistics.median(next_call_ms), "most": max(next_call_ms)},
        "apply_ms": {"median": statistics.median(apply_ms), "most": max(apply_ms)},
        **machine(),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
