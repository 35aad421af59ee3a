"""Nights in a row with rolling windows: what one costs of a full run, and whether it equals one row for row.

Synthetic events as in ``feature_throughput``, one file per day. The features of 61 days are made in full; then each
night one more file comes, ``history_days`` drops the oldest day, and both windows move. Each night runs in its own
process on top of the last one's artifact, next to a full run of the same files; both are timed without the start of
Python and its imports, and compared through the readers that training uses.

Called by ``feature_throughput --nights``.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.feature_throughput import DAYS, START_SECONDS, schema_for, write_tables

VALID_DAYS, TEST_DAYS = 7, 7


def run_night(folder: Path, out: Path, day: int, history_days: int, previous: Path | None) -> None:
    """The features of the days before ``day``; prints the wall and CPU seconds of the job."""
    from apache_beam.runners.portability import fn_api_runner  # noqa: F401

    from pipelines.contracts.manifest import read_manifest
    from pipelines.features import job as features

    days = [str(folder / "events" / f"day-{number:03d}.parquet") for number in range(day)]
    split = {"valid_days": VALID_DAYS, "test_days": TEST_DAYS, "history_days": history_days}
    schema = schema_for(folder, days=days, split=split)
    as_of = datetime.datetime.fromtimestamp(START_SECONDS, datetime.UTC) + datetime.timedelta(days=day)
    started, cpu_started = time.perf_counter(), time.process_time()
    made = features.run(schema, out, previous=previous, as_of=as_of)
    print(time.perf_counter() - started, time.process_time() - cpu_started)
    if previous is not None and not read_manifest(made).facts["increment"]["used"]:
        raise SystemExit("the previous run was not used")


def measured(folder: Path, out: Path, day: int, history_days: int, previous: Path | None) -> tuple[float, float]:
    """``run_night`` in a process of its own: its wall and CPU seconds."""
    command = [sys.executable, "-m", "benchmarks.rolling_nights", str(folder), str(out), str(day), str(history_days)]
    os.sync()  # Pending writes of the previous run are not charged to this one.
    given = [] if previous is None else ["--previous", str(previous)]
    done = subprocess.run([*command, *given], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the night of day {day} failed")
    wall, cpu = (float(word) for word in done.stdout.strip().splitlines()[-1].split())
    return wall, cpu


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two features artifacts, as their readers see them."""
    from pipelines.contracts.manifest import read_manifest
    from pipelines.features.totals import HELD_OUT_FILE
    from pipelines.sequences.reader import Sequences, load_encoded, load_items, load_users

    found = []
    sequences = [Sequences.open(path) for path in (one, other)]
    if not sequences[0].user_ids.equals(sequences[1].user_ids):
        found.append("user_ids")
    columns = ("offsets", "rows", "times", "actions", "splits", "values")
    found += [name for name in columns if not np.array_equal(*(getattr(each.events, name) for each in sequences))]
    del sequences
    tables = {
        load.__name__: [load(path).combine_chunks() for path in (one, other)] for load in (load_items, load_users)
    }
    found += [name for name, (mine, others) in tables.items() if not mine.equals(others)]
    for side in ("item", "user"):
        encoded = [load_encoded(path, side) for path in (one, other)]
        if encoded[0].keys() != encoded[1].keys():
            found.append(f"encoded {side}s")
        found += [f"encoded {side}.{name}" for name in encoded[0] if not np.array_equal(*(e[name] for e in encoded))]
    files = [HELD_OUT_FILE, *(f"vocabulary/{path.name}" for path in sorted((one / "vocabulary").iterdir()))]
    found += [name for name in files if (one / name).read_bytes() != (other / name).read_bytes()]
    facts = [read_manifest(path).facts for path in (one, other)]
    names = ("counts", "window", "new_in_test", "unknown", "joined", "duplicates", "as_of_us", "days")
    return found + [f"facts.{name}" for name in names if facts[0][name] != facts[1][name]]


def rolling(work: Path, events: int, nights: int) -> dict[str, Any]:
    """Nights in a row, each next to a full run.

    Raises:
        SystemExit: a night differs from its full run.
    """
    folder, out = work / f"days-{events}-{nights}", work / "out" / "rolling"
    first = DAYS + 1
    write_tables(folder, events, by_day=True, days=first + nights)
    measured(folder, out / "night", first, first, None)
    seconds: dict[str, list[tuple[float, float]]] = {"full": [], "night": []}
    for day in range(first + 1, first + nights + 1):
        seconds["night"].append(measured(folder, out / "night", day, first, out / "night"))
        seconds["full"].append(measured(folder, out / "full", day, first, None))
        differing = differences(out / "night", out / "full")
        print("day", day, "night", seconds["night"][-1], "full", seconds["full"][-1], differing, flush=True)
        if differing:
            raise SystemExit(f"the night of day {day} differs from a full run: {', '.join(differing)}")
    walls, cpus = ({name: [run[place] for run in runs] for name, runs in seconds.items()} for place in (0, 1))
    full = {"wall": statistics.median(walls["full"]), "cpu": statistics.median(cpus["full"])}
    return {
        "rolling_night_share": round(statistics.median(walls["night"]) / full["wall"], 3),
        "fifteenth_night_share": round(walls["night"][-1] / full["wall"], 3),
        "rolling_night_cpu_share": round(statistics.median(cpus["night"]) / full["cpu"], 3),
        "fifteenth_night_cpu_share": round(cpus["night"][-1] / full["cpu"], 3),
        "rolling_seconds": {name: [round(one, 2) for one in runs] for name, runs in walls.items()},
        "rolling_cpu_seconds": {name: [round(one, 2) for one in runs] for name, runs in cpus.items()},
    }


def main() -> None:
    """One run, for ``measured``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("day", type=int)
    parser.add_argument("history_days", type=int)
    parser.add_argument("--previous", type=Path)
    asked = parser.parse_args()
    run_night(asked.folder, asked.out, asked.day, asked.history_days, asked.previous)


if __name__ == "__main__":
    main()
