"""Throughput of the features job against a row-at-a-time Beam pipeline and single-process Polars.

Makes synthetic events (20 per user, Zipf-like items, 60 days, uniform times), then runs each contender in its own
process and records its seconds and peak memory. All do the same: read Parquet, check every column, look items up in
the catalogue, group by user in canonical order, write sequences. The features job also counts frequencies, fits the
vocabulary, encodes and seals its artifact; that is included in its time. Contenders alternate in one run; reported are
medians with all runs.

The same events as one CSV file with declared types (ids int64, ISO times): ``csv_events_per_second`` and
``csv_time_ratio_to_polars``, Polars reading the same CSV with the types given to it.

The nightly run: 61 days of events, one file per day, in full and on top of a run over the first 60; its share of the
full run's time. ``one_day_share`` is that of a plain new day; others are the fifteenth night in a row, a day with one
item in a hundred new (every row of the catalogue moves) and one on which the split's bounds have moved.

Nights in a row with rolling windows, each compared with a full run row for row: ``benchmarks.rolling_nights``.
``rolling_night_share`` is the median night's share of the median full run, ``fifteenth_night_share`` the last one's.

    python benchmarks/feature_throughput.py --work DIR [--events 20_000_000] [--scaling 5_000_000 80_000_000]

Writes benchmarks/results/feature_throughput.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

ITEMS = 200_000
EVENTS_PER_USER = 20
NEW_ITEMS = 2_000
DAYS = 60
NIGHTS = 14
# Before the first of these nights, so that every run has events in test.
EARLY_BOUNDS = ("2025-02-02", "2025-02-09")
START_SECONDS = 1_735_689_600  # 2025-01-01
ROWS_PER_GROUP = 1_000_000
# A row-at-a-time pipeline is measured on this many events: its rate does not depend on their number.
ROWWISE_EVENTS = 500_000
# A run only counts if other processes take at most this much of the machine.
QUIET_CORES = 0.25
RESULT = Path(__file__).parent / "results" / "feature_throughput.json"


def write_tables(folder: Path, events: int, *, by_day: bool = False, days: int = DAYS + 1) -> None:
    """Writes events.parquet (or one file per day below events/) and items.parquet, unless they are there.

    ``events`` are those of ``DAYS`` days; ``days`` files by day may be more.
    """
    if (folder / "items.parquet").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(17)
    shares = 1 / np.arange(1, ITEMS + 1) ** 0.8
    cumulative = np.cumsum(shares / shares.sum())
    if by_day:
        (folder / "events").mkdir(exist_ok=True)
        for day in range(days):
            table = _events(rng, events // DAYS, events // EVENTS_PER_USER, cumulative, day, day + 1)
            pq.write_table(table, folder / "events" / f"day-{day:03d}.parquet", row_group_size=ROWS_PER_GROUP)
    else:
        with pq.ParquetWriter(folder / "events.parquet", _events(rng, 1, 1, cumulative, 0, DAYS).schema) as writer:
            for start in range(0, events, ROWS_PER_GROUP):
                rows = min(ROWS_PER_GROUP, events - start)
                writer.write_table(_events(rng, rows, events // EVENTS_PER_USER, cumulative, 0, DAYS))
    ids = np.concatenate([np.arange(ITEMS) * 3 + 11, np.arange(NEW_ITEMS) * 300 + 12])
    items = {
        "item_id": ids,
        "category": [f"c{place % 100}" for place in range(len(ids))],
        "price": rng.lognormal(3, 1, len(ids)),
    }
    pq.write_table(pa.table(items), folder / "items-grown.parquet")
    pacsv.write_csv(pa.table(items).slice(0, ITEMS), folder / "items.csv")
    pq.write_table(pa.table(items).slice(0, ITEMS), folder / "items.parquet")


def write_csv(folder: Path) -> None:
    """Writes events.csv with the events of events.parquet, unless it is there. Times are ISO texts to the second."""
    target = folder / "events.csv"
    if target.exists():
        return
    aside = target.with_suffix(".aside")
    file = pq.ParquetFile(folder / "events.parquet")
    with aside.open("wb") as sink:
        for batch in file.iter_batches(ROWS_PER_GROUP):
            table = pa.Table.from_batches([batch])
            times = pc.strftime(table["time"].cast(pa.timestamp("s", tz="UTC")), format="%Y-%m-%dT%H:%M:%SZ")
            table = table.set_column(2, "time", times).set_column(3, "action", table["action"].cast(pa.string()))
            options = pacsv.WriteOptions(include_header=sink.tell() == 0, quoting_style="needed")
            pacsv.write_csv(table, sink, options)
    aside.rename(target)


def _events(rng: np.random.Generator, rows: int, users: int, cumulative: Any, first: int, last: int) -> pa.Table:
    seconds = rng.integers(first * 86_400, last * 86_400, rows) + START_SECONDS
    actions = pa.array((rng.random(rows) < 0.1).astype(np.int8))
    return pa.table(
        {
            "user_id": rng.integers(0, users, rows) * 7 + 3,
            "item_id": np.searchsorted(cumulative, rng.random(rows)).clip(max=ITEMS - 1) * 3 + 11,
            "time": pa.array(seconds * 1_000_000, pa.timestamp("us", tz="UTC")),
            "action": pa.DictionaryArray.from_arrays(actions, pa.array(["click", "purchase"])),
            "value": rng.lognormal(2, 1, rows).astype(np.float32),
        }
    )


def schema_for(
    folder: Path,
    *,
    days: str | list[str] = "day-*.parquet",
    items: str = "items.parquet",
    suffix: str = "parquet",
    bounds: tuple[str, str] = ("2025-02-16", "2025-02-23"),
    split: dict[str, int] | None = None,
) -> Any:
    """The schema of the synthetic tables, with a rule on a column in addition to the checks that every column gets."""
    from pipelines.contracts.schema import parse_schema

    events: str | list[str] = str(folder / f"events.{suffix}")
    if (folder / "events").is_dir():
        events = days if isinstance(days, list) else str(folder / "events" / days)
    columns = {"user_id": "user_id", "item_id": "item_id", "time": "time", "action": "action", "value": "value"}
    return parse_schema(
        {
            "dataset": {"name": "synthetic"},
            "tables": {
                "events": {"path": events, **columns},
                "items": {"path": str(folder / items), "item_id": "item_id"},
            },
            "ids": {"user": "int64", "item": "int64"},
            "actions": {"click": 1.0, "purchase": 3.0},
            "features": {
                "item": [
                    {"name": "item_id", "kind": "id"},
                    {"name": "category", "kind": "categorical"},
                    {"name": "price", "kind": "numeric", "scale": "log"},
                ]
            },
            "split": split or {"valid_from": bounds[0], "test_from": bounds[1]},
            "validation": {"columns": {"events": {"value": {"nullable": False, "min": 0, "max": 1e6}}}},
        },
        "benchmark",
    )


def contend_towerline(folder: Path, out: Path) -> None:
    """The features job on its default local runner."""
    from pipelines.features import job as features

    features.run(schema_for(folder), out / "features")


def contend_towerline_csv(folder: Path, out: Path) -> None:
    """The features job on CSV tables with declared types."""
    from pipelines.features import job as features

    features.run(schema_for(folder, suffix="csv", items="items.csv"), out / "features")


def contend_one_core(folder: Path, out: Path) -> None:
    """The features job with one core for all its threads."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    contend_towerline(folder, out)


def contend_sixty_days(folder: Path, out: Path) -> None:
    """All days except the last: the base of a nightly run."""
    from pipelines.features import job as features

    features.run(schema_for(folder, days="day-0[0-5]*.parquet"), out / "features")


def contend_sixty_days_in_nights(folder: Path, out: Path) -> None:
    """The same with one run per night for the last days: the base of a nightly run after weeks."""
    from pipelines.features import job as features

    made, previous = out / "features", None
    for last in range(DAYS - 1 - NIGHTS, DAYS):
        days = [str(folder / "events" / f"day-{day:03d}.parquet") for day in range(last + 1)]
        features.run(schema_for(folder, days=days, bounds=EARLY_BOUNDS), made, previous=previous)
        previous = made


def contend_one_day(folder: Path, out: Path, *, upon: str = "sixty_days", **changes: Any) -> None:
    """The last day on top of the others."""
    from pipelines.contracts.manifest import read_manifest
    from pipelines.features import job as features

    made = features.run(schema_for(folder, **changes), out / "features", previous=out.parent / upon / "features")
    if not read_manifest(made).facts["increment"]["used"]:
        raise SystemExit("the previous run was not used")


def contend_one_day_after_nights(folder: Path, out: Path) -> None:
    """The same on top of a run that has appended for two weeks; one partition in sixteen is rewritten."""
    contend_one_day(folder, out, upon="sixty_days_in_nights", bounds=EARLY_BOUNDS)


def contend_one_day_new_items(folder: Path, out: Path) -> None:
    """The same with a catalogue that has grown by one percent."""
    contend_one_day(folder, out, items="items-grown.parquet")


def contend_one_day_moved_bounds(folder: Path, out: Path) -> None:
    """The same with a later end of the train window."""
    contend_one_day(folder, out, bounds=("2025-02-17", "2025-02-23"))


def contend_polars(folder: Path, out: Path) -> None:
    """One Polars process on all cores, the whole table in memory."""
    import polars as pl

    items = pl.read_parquet(folder / "items.parquet")
    events = pl.read_parquet(folder / "events.parquet").with_columns(pl.col("action").cast(pl.String))
    _sequences_by_polars(items, events, out)


def contend_polars_csv(folder: Path, out: Path) -> None:
    """The same from CSV, with the types given to Polars' reader."""
    import polars as pl

    types = {"user_id": pl.Int64, "item_id": pl.Int64, "time": pl.String, "action": pl.String, "value": pl.Float32}
    items = pl.read_csv(folder / "items.csv")
    events = pl.read_csv(folder / "events.csv", schema=types).with_columns(
        pl.col("time").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us").dt.replace_time_zone("UTC")
    )
    _sequences_by_polars(items, events, out)


def _sequences_by_polars(items: Any, events: Any, out: Path) -> None:
    import polars as pl

    bounds = [np.datetime64("2025-02-16"), np.datetime64("2025-02-23")]
    items = items.sort("item_id").with_row_index("row").select("item_id", "row")
    checked = events.join(items, on="item_id", how="left").filter(
        pl.col("user_id").is_not_null()
        & pl.col("row").is_not_null()
        & pl.col("time").is_between(pl.datetime(1970, 1, 1, time_zone="UTC"), pl.datetime(2200, 1, 1, time_zone="UTC"))
        & pl.col("action").is_in(["click", "purchase"])
        & pl.col("value").is_finite()
        & pl.col("value").is_between(0, 1e6)
    )
    if len(checked) < 0.99 * len(events):
        raise SystemExit("too many rejects")
    day = pl.col("time").dt.replace_time_zone(None)
    coded = checked.select(
        "user_id",
        pl.col("row").cast(pl.Int32),
        pl.col("time").dt.epoch("us"),
        (pl.col("action") == "purchase").cast(pl.Int8).alias("action"),
        "value",
        ((day >= bounds[0]).cast(pl.Int8) + (day >= bounds[1]).cast(pl.Int8)).alias("split"),
    )
    grouped = (
        coded.sort("user_id", "time", "row", "action", "value").group_by("user_id", maintain_order=True).agg(pl.all())
    )
    grouped.write_parquet(out / "sequences.parquet", compression="lz4")


def contend_rowwise(folder: Path, out: Path) -> None:
    """The same on Beam with one element per event, as in the examples of Beam's own guide."""
    import datetime

    import apache_beam as beam
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    rows = {item: row for row, item in enumerate(pq.read_table(folder / "items.parquet")["item_id"].to_pylist())}
    first, last = (datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (1970, 2200))
    bounds = [datetime.datetime(2025, 2, day, tzinfo=datetime.UTC) for day in (16, 23)]

    def check(event: dict[str, Any]) -> Any:
        row, moment, value = rows.get(event["item_id"]), event["time"], event["value"]
        if event["user_id"] is None or row is None or event["action"] not in ("click", "purchase"):
            return
        if not first <= moment < last or value is None or not 0 <= value <= 1e6:
            return
        split = (moment >= bounds[0]) + (moment >= bounds[1])
        microseconds = (moment - first) // datetime.timedelta(microseconds=1)
        yield event["user_id"], (microseconds, row, int(event["action"] == "purchase"), value, split)

    def sequence(pair: Any) -> dict[str, Any]:
        columns = zip(*sorted(pair[1]), strict=True)
        return {
            "user_id": pair[0],
            **dict(zip(("times", "rows", "actions", "values", "splits"), map(list, columns), strict=True)),
        }

    lists = {"times": pa.int64(), "rows": pa.int32(), "actions": pa.int8(), "values": pa.float32(), "splits": pa.int8()}
    layout = pa.schema([("user_id", pa.int64()), *((name, pa.list_(kind)) for name, kind in lists.items())])
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        (
            pipeline
            | beam.io.ReadFromParquet(str(folder / "events.parquet"))
            | beam.FlatMap(check)
            | beam.GroupByKey()
            | beam.Map(sequence)
            | beam.io.WriteToParquet(str(out / "sequences"), layout)
        )


CONTENDERS: dict[str, Callable[[Path, Path], None]] = {
    "towerline": contend_towerline,
    "towerline_csv": contend_towerline_csv,
    "polars": contend_polars,
    "polars_csv": contend_polars_csv,
    "rowwise": contend_rowwise,
    "one_core": contend_one_core,
    "sixty_days": contend_sixty_days,
    "sixty_days_in_nights": contend_sixty_days_in_nights,
    "one_day": contend_one_day,
    "one_day_after_nights": contend_one_day_after_nights,
    "one_day_new_items": contend_one_day_new_items,
    "one_day_moved_bounds": contend_one_day_moved_bounds,
}
COMPARED = ("towerline", "polars", "towerline_csv", "polars_csv", "one_core", "rowwise")
NIGHTLY = ("towerline", "one_day", "one_day_after_nights", "one_day_new_items", "one_day_moved_bounds")


@dataclass(frozen=True)
class Measured:
    """One run of one contender: wall and CPU seconds within the process, without start-up, and its peak memory.

    ``others``: cores used by other processes meanwhile.
    """

    seconds: float
    cpu_seconds: float
    peak_rss_mb: float
    others: float


def measure(contender: str, folder: Path, out: Path, tries: int = 1) -> Measured:
    """Runs a contender in its own process; repeats up to ``tries`` times if others used the machine."""
    for left in reversed(range(tries)):
        measured = _measure(contender, folder, out)
        if measured.others <= QUIET_CORES or left == 0:
            break
        print("not counted, the machine was busy:", contender, measured)
    return measured


def _measure(contender: str, folder: Path, out: Path) -> Measured:
    out.mkdir(parents=True, exist_ok=True)
    os.sync()  # Pending writes of the previous run are not charged to this one.
    command = [sys.executable, __file__, "--contend", contender, "--work", str(folder), "--out", str(out)]
    busy, started = _busy_seconds(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    busy, wall = _busy_seconds() - busy, time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{contender} failed on {folder}")
    seconds, cpu_seconds = (float(word) for word in text.strip().splitlines()[-1].split())
    others = max(busy - usage.ru_utime - usage.ru_stime, 0.0) / wall
    return Measured(seconds, cpu_seconds, usage.ru_maxrss / 1024, round(others, 2))


def _busy_seconds() -> float:
    """CPU seconds that the whole machine has spent since boot (Linux), without idle time and disk waits."""
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:7])) / os.sysconf("SC_CLK_TCK")


def contend(contender: str, folder: Path, out: Path) -> None:
    """What the child process does: its imports first, then the timed work."""
    import apache_beam  # noqa: F401
    import polars  # noqa: F401
    from apache_beam.runners.portability import fn_api_runner  # noqa: F401

    from pipelines.features import job as features  # noqa: F401

    started, cpu_started = time.perf_counter(), time.process_time()
    CONTENDERS[contender](folder, out)
    print(time.perf_counter() - started, time.process_time() - cpu_started)


def compare(work: Path, events: int, runs: int) -> dict[str, Any]:
    """All contenders, alternating."""
    write_tables(work / str(events), events)
    write_csv(work / str(events))
    write_tables(work / str(ROWWISE_EVENTS), ROWWISE_EVENTS)
    found: dict[str, list[Measured]] = {name: [] for name in COMPARED}
    for _ in range(runs):
        for name, measured in found.items():
            size = ROWWISE_EVENTS if name == "rowwise" else events
            measured.append(measure(name, work / str(size), work / "out" / name))
            print(name, size, measured[-1])
    seconds = {name: statistics.median(run.seconds for run in measured) for name, measured in found.items()}
    rowwise_rate = ROWWISE_EVENTS / seconds["rowwise"]
    return {
        "events": events,
        "events_per_second": round(events / seconds["towerline"]),
        "events_per_second_one_core": round(events / seconds["one_core"]),
        "peak_rss_mb": round(max(run.peak_rss_mb for run in found["towerline"])),
        "speedup_over_rowwise": round(events / seconds["towerline"] / rowwise_rate, 2),
        "time_ratio_to_polars": round(seconds["towerline"] / seconds["polars"], 2),
        "csv_events_per_second": round(events / seconds["towerline_csv"]),
        "csv_time_ratio_to_polars": round(seconds["towerline_csv"] / seconds["polars_csv"], 2),
        "csv_peak_rss_mb": round(max(run.peak_rss_mb for run in found["towerline_csv"])),
        "polars_peak_rss_mb": round(max(run.peak_rss_mb for run in found["polars"])),
        "rowwise_events": ROWWISE_EVENTS,
        "seconds": {name: [round(run.seconds, 2) for run in measured] for name, measured in found.items()},
    }


def nightly(work: Path, events: int, runs: int, tries: int) -> dict[str, Any]:
    """One new day on top of 60, alternating with the 61 days in full."""
    folder = work / f"days-{events}"
    write_tables(folder, events, by_day=True)
    for name in ("sixty_days", "sixty_days_in_nights"):
        measure(name, folder, work / "out" / name)
    found: dict[str, list[Measured]] = {name: [] for name in NIGHTLY}
    for _ in range(runs):
        for name, measured in found.items():
            measured.append(measure(name, folder, work / "out" / name, tries))
            print(name, events, measured[-1])
    seconds = {name: statistics.median(run.seconds for run in measured) for name, measured in found.items()}
    cpu = {name: statistics.median(run.cpu_seconds for run in measured) for name, measured in found.items()}
    shares = {f"{name}_share": round(seconds[name] / seconds["towerline"], 3) for name in NIGHTLY[1:]}
    return {
        **shares,
        "one_day_cpu_share": round(cpu["one_day"] / cpu["towerline"], 3),
        "nightly_events": events,
        "nightly_seconds": {name: [round(run.seconds, 2) for run in measured] for name, measured in found.items()},
        "nightly_other_cores": {name: [run.others for run in measured] for name, measured in found.items()},
    }


def scale(work: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """The features job on tables of several sizes."""
    found = []
    for events in sizes:
        write_tables(work / str(events), events)
        run = measure("towerline", work / str(events), work / "out" / "scaling")
        found.append(
            {
                "events": events,
                "seconds": round(run.seconds, 2),
                "events_per_second": round(events / run.seconds),
                "peak_rss_mb": round(run.peak_rss_mb),
            }
        )
        print(found[-1])
    return found


def machine() -> dict[str, Any]:
    """Where this ran."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "commit": commit,
        "load": os.getloadavg(),
    }


def main() -> None:
    """Measures and writes the result, keeping the keys of an earlier one that this run did not measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--scaling", type=int, nargs="*", default=[5_000_000, 20_000_000, 80_000_000])
    parser.add_argument("--runs", type=int, default=3, help="number of runs per contender; 0 skips the comparison")
    parser.add_argument("--nightly", type=int, default=5, help="runs of the nightly measurement; 0 skips it")
    parser.add_argument("--nights", type=int, default=15, help="nights in a row with rolling windows; 0 skips them")
    parser.add_argument("--tries", type=int, default=4, help="how often a nightly run is repeated on a busy machine")
    parser.add_argument("--contend", choices=sorted(CONTENDERS))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.contend:
        contend(asked.contend, asked.work, asked.out)
        return
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if asked.runs:
        result |= compare(asked.work, asked.events, asked.runs)
    if asked.nightly:
        result |= nightly(asked.work, asked.events, asked.nightly, asked.tries)
    if asked.nights:
        from benchmarks.rolling_nights import rolling

        result |= rolling(asked.work, asked.events, asked.nights)
    if asked.scaling:
        result["scaling"] = scale(asked.work, asked.scaling)
    result["machine"] = machine()
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
