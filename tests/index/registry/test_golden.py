"""The golden bundle of format version 1 opens with today's code and answers as on the day it was written.

``python -m tests.index.registry.test_golden`` wrote it once; a later format gets its own golden bundle next to it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from index.registry import delta_writer
from index.registry.bundle import Bundle
from index.registry.registry import Registry, check_answers
from index.retrieval.retriever import Retriever

GOLDEN = Path(__file__).parent / "golden" / "bundle-v1"
ANSWERS = GOLDEN.parent / "answers-v1.json"
RECORD = {"history": [1003, 1030, 1060], "country": "CA", "age": 33, "time": "2025-02-23"}
K = 12


def test_the_golden_bundle_opens_and_answers_as_it_did(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(GOLDEN, tmp_path / "bundle"))
    opened = Bundle.open(bundle)
    assert opened.manifest.format_version == 1
    assert opened.spec.engine == "scann"
    check_answers(opened)
    expected = json.loads(ANSWERS.read_text())
    found = Retriever.open(bundle).retrieve(RECORD, K)
    assert found.item_ids.tolist() == expected["item_ids"]
    np.testing.assert_allclose(found.scores, expected["scores"], rtol=1e-4, atol=1e-5)


def test_the_golden_bundle_takes_a_delta(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(Path(shutil.copytree(GOLDEN, tmp_path / "bundle")))
    applied = delta_writer.apply(registry.url, pa.table({"item_id": [5], "category": ["toys"]}))
    assert applied.upserted == 1


def write() -> None:
    """Writes the golden bundle."""
    from index.building import embedding_job as embed
    from index.building import job as build
    from index.settings import IndexSettings, TreeSettings
    from tests.index.stage_artifacts import write_stages

    with tempfile.TemporaryDirectory() as folder:
        stages = write_stages(Path(folder), items=60, users=30, dim=8)
        embeddings = embed.run(stages.model, stages.features, stages.root / "embeddings")
        tree = TreeSettings(leaves=4, leaves_to_search=4, reorder=60, training_sample=60)
        settings = IndexSettings(
            attributes=("category", "price", "in_stock"), engine="scann", tree=tree, tuning_queries=10
        )
        build.run(embeddings, stages.model, stages.features, settings, GOLDEN)
    found = Retriever.open(GOLDEN).retrieve(RECORD, K)
    answers = {"item_ids": found.item_ids.tolist(), "scores": found.scores.tolist()}
    ANSWERS.write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    write()
