"""The Beam jobs on a Flink cluster and in several processes: the rows of a local run, whoever is killed meanwhile."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from index.search.exact import VECTORS_FILE
from tests.cluster.flink import Cluster, fetch
from tests.cluster.journey import PARTITIONS, Journey, features_hash, rows_hash
from towerline.jobs import candidates as candidates_job

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("default")]

# Users of an element, so that both workers have several. The local run has the same: a BLAS may round the dot
# products of a matrix of another height otherwise in the last digit.
ELEMENT_USERS = 500


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    made = Journey(tmp_path_factory.mktemp("journey"))
    made.write_tables()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates_job, "_ELEMENT_USERS", ELEMENT_USERS)
        made.run_local()
        yield made


@pytest.fixture(scope="module")
def local_features(journey: Journey) -> dict[str, str]:
    return features_hash(journey.root / "features")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if shutil.which("java") is None or shutil.which("mvn") is None:
        pytest.skip("a Flink cluster needs java and mvn")
    cache = Path(os.environ.get("TOWERLINE_CLUSTER_CACHE", Path.home() / ".cache" / "towerline-cluster"))
    fetch(cache)
    with Cluster(tmp_path_factory.mktemp("cluster"), cache) as running:
        yield running


def test_features_on_flink_are_those_of_a_local_run(
    cluster: Cluster, journey: Journey, local_features: dict[str, str], tmp_path: Path
) -> None:
    assert features_hash(journey.features(tmp_path / "features", cluster.beam_args)) == local_features


def test_embeddings_on_flink_are_those_of_a_local_run(cluster: Cluster, journey: Journey, tmp_path: Path) -> None:
    out = journey.embeddings(tmp_path / "embeddings", cluster.beam_args)
    np.testing.assert_array_equal(np.load(out / VECTORS_FILE), np.load(journey.root / "embeddings" / VECTORS_FILE))


def test_candidates_on_flink_are_those_of_a_local_run(cluster: Cluster, journey: Journey, tmp_path: Path) -> None:
    out = journey.candidates(tmp_path / "candidates", cluster.beam_args)
    parts = sorted((out / "candidates").iterdir())
    assert len(parts) == 5
    assert rows_hash(parts) == rows_hash((journey.root / "candidates" / "candidates").iterdir())


def kill_worker(cluster: Cluster) -> None:
    """Kills one of the Python workers; Flink starts the task again with a new one."""
    cluster.kill(cluster.python_workers()[0])


def kill_task_manager(cluster: Cluster) -> None:
    """Kills a TaskManager and starts another in its place, as whoever runs the cluster would."""
    cluster.kill(cluster.processes["taskmanager-1"].pid)
    cluster.start_task_manager(3)


@pytest.mark.parametrize("strike", [kill_worker, kill_task_manager])
def test_a_process_killed_in_the_middle_of_the_job_changes_nothing(
    cluster: Cluster,
    journey: Journey,
    local_features: dict[str, str],
    tmp_path: Path,
    strike: Callable[[Cluster], None],
) -> None:
    built_when_struck: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            facts = list(tmp_path.glob(".features.*.draft/.work/facts/*"))
            if facts:
                strike(cluster)
                built_when_struck.append(len(facts))
                return

    thread = threading.Thread(target=watch)
    thread.start()
    started = time.monotonic()
    out = journey.features(tmp_path / "features", cluster.beam_args)
    done.set()
    thread.join()
    assert 0 < built_when_struck[0] < PARTITIONS
    assert features_hash(out) == local_features
    assert time.monotonic() - started < 200


def test_features_of_several_local_processes_are_those_of_one(
    journey: Journey, local_features: dict[str, str], tmp_path: Path
) -> None:
    out = journey.features(tmp_path / "features", ["--direct_num_workers=2"])
    assert features_hash(out) == local_features
