"""The golden bundle of each format version opens with today's code and answers as on the day it was written.

``python -m tests.index.registry.test_golden`` writes that of the present version; it is written once.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index.building import compaction
from index.registry import delta_writer
from index.registry.bundle import FORMAT_VERSION, Bundle
from index.registry.registry import Registry, check_answers
from index.retrieval.retriever import Retriever

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = range(1, FORMAT_VERSION + 1)
RECORD = {"history": [1003, 1030, 1060], "country": "CA", "age": 33, "time": "2025-02-23"}
K = 12


@pytest.mark.parametrize("version", VERSIONS)
def test_the_golden_bundle_opens_and_answers_as_it_did(tmp_path: Path, version: int) -> None:
    bundle = Path(shutil.copytree(GOLDEN / f"bundle-v{version}", tmp_path / "bundle"))
    opened = Bundle.open(bundle)
    assert opened.manifest.format_version == version
    assert opened.spec.engine == "scann"
    assert opened.delta_sequence == 0
    assert (opened.item_features is None) == (version == 1)
    assert ("popularity.npy" in opened.manifest.files) == (version >= 3)
    assert ("scann/projection.npy" in opened.manifest.files) == (version >= 3)
    check_answers(opened)
    expected = json.loads((GOLDEN / f"answers-v{version}.json").read_text())
    found = Retriever.open(bundle).retrieve(RECORD, K)
    assert found.item_ids.tolist() == expected["item_ids"]
    np.testing.assert_allclose(found.scores, expected["scores"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_golden_bundle_takes_changes_and_is_compacted(tmp_path: Path, version: int) -> None:
    """A known ad keeps what the row does not say: all of it, as its features are among the attributes."""
    registry = Registry(tmp_path / "registry")
    registry.publish(Path(shutil.copytree(GOLDEN / f"bundle-v{version}", tmp_path / "bundle")))
    before = registry.open().bundle.items.to_pylist()[0]
    changes = pa.table({"item_id": [5, before["item_id"]], "price": [2.5, 99.0]})
    assert delta_writer.apply(registry.url, changes).upserted == 2
    compaction.run(registry.url, tmp_path / "compacted")
    bundle = registry.open().bundle
    assert (bundle.manifest.format_version, bundle.delta_sequence) == (FORMAT_VERSION, 1)
    ads = {ad["item_id"]: ad for ad in bundle.items.to_pylist()}
    assert ads[before["item_id"]] == {**before, "price": 99.0}
    assert ads[5] == {**dict.fromkeys(before), "item_id": 5, "price": 2.5}


def write() -> None:
    """Writes the golden bundle of the present version."""
    from index.building import embedding_job as embed
    from index.building import job as build
    from index.settings import IndexSettings, TreeSettings
    from tests.index.stage_artifacts import write_stages

    bundle = GOLDEN / f"bundle-v{FORMAT_VERSION}"
    with tempfile.TemporaryDirectory() as folder:
        stages = write_stages(Path(folder), items=60, users=30, dim=8)
        embeddings = embed.run(stages.model, stages.features, stages.root / "embeddings")
        tree = TreeSettings(leaves=4, leaves_to_search=4, reorder=60, training_sample=60, projection=4)
        settings = IndexSettings(
            attributes=("category", "price", "in_stock"), engine="scann", tree=tree, tuning_queries=10
        )
        build.run(embeddings, stages.model, stages.features, settings, bundle)
    found = Retriever.open(bundle).retrieve(RECORD, K)
    answers = {"item_ids": found.item_ids.tolist(), "scores": found.scores.tolist()}
    (GOLDEN / f"answers-v{FORMAT_VERSION}.json").write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    write()
