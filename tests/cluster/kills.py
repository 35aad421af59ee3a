"""Kills a Python worker in the middle of the features job, again and again on one cluster.

    python -m tests.cluster.kills FOLDER [--kills 20]

Prints a line per kill: the workers' state when struck, the job's outcome, whether the rows are those of a local run.
The cluster's logs stay in FOLDER. Exits with 1 where a job failed or its rows differ.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from tests.cluster.flink import Cluster, fetch
from tests.cluster.journey import Journey, features_hash


def strike_when_half_built(cluster: Cluster, folder: Path, done: threading.Event, struck: list[int]) -> None:
    """Kills one worker as soon as a partition is built."""
    while not done.wait(0.01):
        facts = list(folder.glob(".features.*.draft/.work/facts/*"))
        workers = cluster.python_workers() if facts else []
        if workers:
            cluster.kill(workers[0])
            struck.append(len(facts))
            return


def one_kill(cluster: Cluster, journey: Journey, folder: Path) -> tuple[list[int], dict[str, str]]:
    """Runs the job with one kill. Returns partitions built when struck, and the hash of the rows."""
    folder.mkdir()
    done, struck = threading.Event(), list[int]()
    thread = threading.Thread(target=strike_when_half_built, args=(cluster, folder, done, struck))
    thread.start()
    try:
        out = journey.features(folder / "features", cluster.beam_args)
    finally:
        done.set()
        thread.join()
    return struck, features_hash(out)


def main() -> int:
    """Runs the kills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    cache = Path(os.environ.get("TOWERLINE_CLUSTER_CACHE", Path.home() / ".cache" / "towerline-cluster"))
    fetch(cache)
    journey = Journey(options.folder)
    journey.write_tables()
    expected = features_hash(journey.features(options.folder / "features", ()))
    failures = 0
    with Cluster(options.folder / "cluster", cache) as cluster:
        for number in range(1, options.kills + 1):
            started = time.monotonic()
            try:
                struck, found = one_kill(cluster, journey, options.folder / f"kill-{number}")
                outcome = "equal" if found == expected else "other rows"
            except Exception:
                struck, outcome = [], f"failed\n{traceback.format_exc()}"
            failures += outcome != "equal" or not struck
            print(f"kill {number}: {struck} built, {outcome}, {time.monotonic() - started:.0f} s", flush=True)  # noqa: T201
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
