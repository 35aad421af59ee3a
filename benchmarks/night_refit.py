"""What training on everything is worth to a night, and how: by a refit, or by going on from the backtest's towers.

Past nights, one per ``--ends``. The backtest of a night learns without the last ``test_days`` before its end and
chooses its epoch on the ``valid_days`` before those. Then there are three ways to publish: the backtest's towers as
they are; towers trained again on everything before the end, for the number of epochs that the backtest found; or the
backtest's towers after some more epochs on everything. The truth is the events of the ``days`` after the end, which
none of them has seen. All of them are asked with the histories and the counts that users and items have at the end.

    python -m benchmarks.night_refit --config configs/complete_journey.toml --ends 2017-09-04 2017-10-02
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.saved_towers import SavedTowers
from index.evaluation.measures.bootstrap import paired_bootstrap
from index.evaluation.measures.metrics import user_metrics
from pipelines.contracts.arrays import Float64
from pipelines.contracts.manifest import git_commit, read_manifest
from pipelines.contracts.schema import SPLITS, DatasetSchema
from pipelines.contracts.top_k import top_k_batch
from pipelines.features import job as features_job
from pipelines.progress import SILENT
from pipelines.sequences.held_out import HeldOut
from towerline.config import Config, load_config
from towers.data.training_data import TrainingData, load
from towers.training import job as training
from towers.training.warm_start import WarmStart

RESULTS = Path(__file__).parent / "results" / "night_refit.json"
K = 100
TEST = SPLITS.index("test")


@dataclass(frozen=True)
class Night:
    """A past night. end: its midnight; events from then on for ``days`` days are the truth."""

    end: datetime.datetime
    valid_days: int
    test_days: int
    days: int

    def split(self, valid_from: float, test_from: float, until: float) -> dict[str, datetime.datetime]:
        """Bounds in days from the end."""
        bounds = {"valid_from": valid_from, "test_from": test_from, "test_until": until}
        return {name: self.end + datetime.timedelta(days=days) for name, days in bounds.items()}


def features_of(schema: DatasetSchema, split: dict[str, datetime.datetime], out: Path) -> Path:
    """Features with these bounds."""
    bounded = DatasetSchema.model_validate({**schema.model_dump(), "split": split})
    return features_job.run(bounded, out, progress=SILENT)


def recalls(model: Path, data: TrainingData, held_out: HeldOut, *, novel: bool) -> Float64:
    """``[users]`` recall@100 of a model's towers; ``novel``: what the users had before is not ranked."""
    vectors = SavedTowers(model).vectors(data, held_out.users, TEST)
    found = np.zeros((held_out.num_users, K), np.int32)
    for start in range(0, held_out.num_users, 512):
        part = np.arange(start, min(start + 512, held_out.num_users))
        scores = vectors.users[part] @ vectors.items.T
        if novel:
            seen = held_out.seen.of_users(part)
            scores[seen.owners, seen.rows] = -np.inf
        found[part] = top_k_batch(scores, K)
    return user_metrics(found, held_out.truth, (K,)).at("recall", K)


def run_night(config: Config, night: Night, work: Path, extra: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """All arms of one night: what it took, and ``[users]`` recalls by arm and kind of item."""
    schema, settings, seed = config.schema_only(), config.towers, config.seed
    before = -night.test_days - night.valid_days
    second = 1.0 / 86_400.0
    held = features_of(schema, night.split(before, -night.test_days, 0), work / "features-backtest")
    asked = features_of(schema, night.split(before, 0, night.days), work / "features-asked")
    # Everything before the end is train or valid; the job wants some valid part, and one second does.
    whole = features_of(schema, night.split(-second, 0, night.days), work / "features-night")
    models, seconds = {"backtest": work / "model-backtest"}, {}
    begun = time.monotonic()
    training.run(held, settings, models["backtest"], seed=seed, resume=False)
    seconds["backtest"] = time.monotonic() - begun
    epochs = int(read_manifest(models["backtest"]).facts["best_epoch"])
    arms: dict[str, dict[str, Any]] = {"refit": {"epochs": epochs}}
    arms |= {f"go on {number}": {"warm": WarmStart(models["backtest"], number)} for number in extra}
    for name, how in arms.items():
        models[name] = work / f"model-{name.replace(' ', '-')}"
        begun = time.monotonic()
        training.run(whole, settings, models[name], seed=seed, resume=False, **how)
        seconds[name] = time.monotonic() - begun
    known, everything = load(asked), load(whole)
    # The backtest's towers read numbers as they were scaled for them.
    known = replace(known, numbers=load(held).numbers)
    figures: dict[str, Any] = {}
    for kind in ("all", "novel"):
        figures[kind] = {}
        for name, model in models.items():
            data = known if name == "backtest" else everything
            held_out = data.held_out(TEST)
            chosen = held_out.without_seen() if kind == "novel" else held_out
            figures[kind][name] = recalls(model, data, chosen, novel=kind == "novel")
    return {"end": night.end.date().isoformat(), "best_epoch": epochs, "seconds": seconds}, figures


def compared(figures: dict[str, Float64]) -> dict[str, Any]:
    """Mean recall of each arm, and its difference from the backtest's and from the refit's with its interval."""
    found: dict[str, Any] = {}
    for name, values in figures.items():
        found[name] = {"recall": float(np.nanmean(values)), "users": int(np.isfinite(values).sum())}
        for other in ("backtest", "refit"):
            if name not in ("backtest", other):
                difference = paired_bootstrap(figures[other], values)
                found[name][f"minus {other}"] = [difference.difference, difference.low, difference.high]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes one entry per data set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--ends", nargs="+", type=datetime.date.fromisoformat, required=True, help="days of the nights")
    parser.add_argument("--valid-days", type=int, default=14)
    parser.add_argument("--test-days", type=int, default=14)
    parser.add_argument("--days", type=int, default=7, help="days after the night that are the truth")
    parser.add_argument("--go-on", type=int, nargs="*", default=[1, 2], help="numbers of epochs to go on for")
    parser.add_argument("--work", type=Path, default=Path("runs/night_refit"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    config = load_config(chosen.config, chosen.set)
    nights, all_figures = [], []
    for day in chosen.ends:
        end = datetime.datetime.combine(day, datetime.time(), datetime.UTC)
        night = Night(end, chosen.valid_days, chosen.test_days, chosen.days)
        facts, figures = run_night(config, night, chosen.work / config.dataset.name / str(day), chosen.go_on)
        nights.append({**facts, **{kind: compared(values) for kind, values in figures.items()}})
        all_figures.append(figures)
        print(json.dumps(nights[-1]), file=sys.stderr, flush=True)
    pooled = {
        kind: compared({arm: np.concatenate([f[kind][arm] for f in all_figures]) for arm in all_figures[0][kind]})
        for kind in ("all", "novel")
    }
    entry = {
        "dataset": config.dataset.name,
        "windows": {"valid_days": chosen.valid_days, "test_days": chosen.test_days, "truth_days": chosen.days},
        "pooled": pooled,
        "nights": nights,
        "machine": f"{platform.machine()}, {platform.python_version()}",
        "commit": git_commit(),
    }
    stored = json.loads(chosen.results.read_text()) if chosen.results.exists() else {"runs": []}
    stored["runs"] = [run for run in stored["runs"] if run["dataset"] != entry["dataset"]] + [entry]
    chosen.results.parent.mkdir(parents=True, exist_ok=True)
    chosen.results.write_text(json.dumps(stored, indent=1))
    print(json.dumps(pooled, indent=1))


if __name__ == "__main__":
    main()
