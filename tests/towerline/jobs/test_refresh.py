"""The nightly job: runs what changed, skips what did not, one at a time, and continues where it was stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from index.building import embedding_job as embed
from index.building import job as build
from index.inference.item_embedder import ItemEmbedder
from index.publishing.publish import rollback
from index.registry import delta_writer
from index.registry.delta_log import DeltaLog
from index.registry.deltas import DeltaState
from index.registry.registry import Registry
from pipelines.contracts.errors import GateError, TowerlineError
from pipelines.contracts.manifest import fingerprint_of, read_manifest
from pipelines.features import job as features_stage
from tests.index.nights import ITEMS, config, tables_of, write_nights
from tests.recorded import Recorded
from towerline.jobs import refresh
from towers.settings import TowersSettings
from towers.training import job as training
from towers.training.warm_start import NIGHTS, WarmStart

ROOT = Path(__file__).parents[3]


@dataclass
class Tables:
    """Replaces the first two stages: ``night`` is what the tables hold. ``ran`` counts the calls of each stage."""

    night: int = 0
    ran: list[str] = field(default_factory=list)
    fail_at: str | None = None

    def called(self, stage: str) -> None:
        self.ran.append(stage)
        if self.fail_at == stage:
            raise TowerlineError(f"{stage} was stopped")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nights")
    write_nights(root, 2)
    return root


@pytest.fixture
def tables(stored: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tables]:
    made = Tables()

    def counted(stage: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            made.called(stage)
            return run(*arguments, **named)

        return wrapped

    modules = {"features": features_stage, "model": training, "embeddings": embed, "bundle": build}
    with tables_of(stored, lambda: made.night):
        for stage, module in modules.items():
            monkeypatch.setattr(module, "run", counted(stage, module.run))
        yield made
        monkeypatch.undo()


def test_the_first_refresh_runs_all_and_the_second_nothing(tables: Tables, tmp_path: Path) -> None:
    progress = Recorded()
    first = refresh.run(config(tmp_path), progress=progress)
    assert tables.ran == ["features", "model", "embeddings", "bundle"]
    assert [stage.outcome for stage in first.stages] == ["ran"] * 4
    assert first.published
    assert first.version == Registry(tmp_path / "registry").current()
    tables.ran.clear()
    second = refresh.run(config(tmp_path), progress=progress)
    assert tables.ran == []
    assert [stage.outcome for stage in second.stages] == ["reused"] * 4
    assert (second.published, second.version) == (False, first.version)
    assert progress.lines[-1] == f"publish: up to date, {first.version} is live"
    assert (tmp_path / "refresh.json").exists()


def test_new_tables_make_a_new_version(tables: Tables, tmp_path: Path) -> None:
    first = refresh.run(config(tmp_path))
    tables.night = 1
    second = refresh.run(config(tmp_path, refresh={"keep_versions": 1}))
    assert second.published
    assert Registry(tmp_path / "registry").version_names() == [second.version]
    assert second.version != first.version
    assert Registry(tmp_path / "registry").open().bundle.num_items == ITEMS + 1


def test_another_index_section_builds_again_but_does_not_train(tables: Tables, tmp_path: Path) -> None:
    refresh.run(config(tmp_path))
    tables.ran.clear()
    refresh.run(config(tmp_path, index={"tuning_queries": 12}))
    assert tables.ran == ["bundle"]


def test_a_stopped_refresh_goes_on_from_the_last_good_stage(tables: Tables, tmp_path: Path) -> None:
    """One night, stopped in every stage in turn: each later try begins where the last one ended."""
    first = refresh.run(config(tmp_path))
    tables.night = 1
    for stage in ("features", "model", "embeddings", "bundle"):
        tables.ran.clear()
        tables.fail_at = stage
        with pytest.raises(TowerlineError, match=f"{stage} was stopped"):
            refresh.run(config(tmp_path))
        assert tables.ran == (["features"] if stage == "features" else [_before(stage), stage])
        assert Registry(tmp_path / "registry").current() == first.version
    tables.ran.clear()
    tables.fail_at = None
    assert refresh.run(config(tmp_path)).published
    assert tables.ran == ["bundle"]


def _before(stage: str) -> str:
    order = ["features", "model", "embeddings", "bundle"]
    return order[order.index(stage) - 1]


def test_a_failed_gate_stops_the_night_and_a_later_force_goes_on(tables: Tables, tmp_path: Path) -> None:
    first = refresh.run(config(tmp_path))
    tables.night = 1
    strict = {"items": 10_000}
    with pytest.raises(GateError, match="at fault: features"):
        refresh.run(config(tmp_path, gates=strict))
    assert Registry(tmp_path / "registry").current() == first.version
    tables.ran.clear()
    forced = refresh.run(config(tmp_path, gates=strict), force_reason="small on purpose")
    assert tables.ran == []
    assert forced.published


def test_what_was_rolled_back_is_not_put_back_by_an_unchanged_night(tables: Tables, tmp_path: Path) -> None:
    first = refresh.run(config(tmp_path))
    tables.night = 1
    refresh.run(config(tmp_path))
    registry = tmp_path / "registry"
    assert rollback(registry) == first.version
    progress = Recorded()
    again = refresh.run(config(tmp_path), progress=progress)
    assert (again.published, again.version) == (False, first.version)
    assert "somebody rolled it back" in progress.lines[-1]


def test_warm_nights_go_on_from_the_live_model_and_then_one_trains_in_full(
    tables: Tables, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[WarmStart | None] = []
    write = training.run

    def counted(features: Path, settings: TowersSettings, out: Path, *, warm: WarmStart | None, **named: Any) -> None:
        begun.append(warm)
        nights = 0 if warm is None else warm.nights()
        write(features, settings, out, **named)
        # As training itself leaves it: what it was made with, and how many warm nights led here.
        content = read_manifest(out)
        made_with = {"towers": settings.model_dump(mode="json", exclude={"tune"}), "seed": 17}
        changed = content.model_copy(update={"config": made_with, "facts": {**content.facts, NIGHTS: nights}})
        fields = changed.model_dump(mode="json", exclude={"seal"})
        (out / "manifest.json").write_text(json.dumps({**fields, "seal": fingerprint_of(fields)}))

    monkeypatch.setattr(training, "run", counted)
    progress = Recorded()
    for place in range(4):
        tables.night = place % 2
        warm = config(tmp_path, refresh={"warm_nights": 2, "warm_epochs": 3})
        refresh.run(warm, progress=progress)
    start = WarmStart(tmp_path / "model", 3)
    assert begun == [None, start, start, None]
    said = [line for line in progress.lines if line.startswith("train:")]
    assert said[0] == "train: in full, because nothing is live yet"
    assert said[1:3] == [f"train: goes on from the live model, night {night} of 2" for night in (1, 2)]
    assert said[3] == "train: in full, because 2 nights have gone on from the last full training"
    damaged = tmp_path / "model" / "towers.json"
    damaged.write_text(damaged.read_text().replace("space", "spice", 1))
    tables.night = 0
    refresh.run(warm, progress=progress)
    assert begun[-1] is None
    assert any(line.startswith("train: in full, because") and "towers.json" in line for line in progress.lines)


def test_ads_that_came_since_the_tables_were_read_are_brought_over(tables: Tables, tmp_path: Path) -> None:
    """Ad 5 comes after the features were written: a new index of the same features still lacks it, new tables know."""
    refresh.run(config(tmp_path))
    registry = Registry(tmp_path / "registry")
    delta_writer.apply(registry.url, pa.table({"item_id": [5], "category": ["toys"]}))
    second = refresh.run(config(tmp_path, index={"tuning_queries": 12}))
    assert second.published
    assert fresh_items(registry) == [5]
    tables.night = 1
    assert refresh.run(config(tmp_path, index={"tuning_queries": 12})).published
    assert fresh_items(registry) == []


def fresh_items(registry: Registry) -> list[int]:
    """Items that the live version has by its deltas alone."""
    bundle = registry.open().bundle
    state = DeltaState.opened(bundle, DeltaLog(registry.store), ItemEmbedder(bundle))
    return state.fresh_items["item_id"].to_pylist()


def test_a_dry_run_publishes_nothing(tables: Tables, tmp_path: Path) -> None:
    done = refresh.run(config(tmp_path), dry_run=True)
    assert (done.published, done.version) == (False, None)
    assert len(done.verdicts) > 3


HOLDER = """
import sys, time
from pathlib import Path
from pipelines.locks import file_lock
with file_lock(Path(sys.argv[1]), 0):
    print("held", flush=True)
    time.sleep(1.0)
"""


@pytest.mark.parametrize("minutes", [0.0, 1.0])
def test_of_two_refreshes_one_waits_or_refuses(tables: Tables, tmp_path: Path, minutes: float) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / ".refresh.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        settings = config(tmp_path, refresh={"lock_wait_minutes": minutes})
        if not minutes:
            with pytest.raises(TowerlineError, match=rf"held by process {holder.pid} .*refresh.lock_wait_minutes"):
                refresh.run(settings)
            assert tables.ran == []
        else:
            tables.fail_at = "features"  # that it gets so far is all that is asked
            with pytest.raises(TowerlineError, match="features was stopped"):
                refresh.run(settings)


NIGHTLY = """
import sys
from pathlib import Path
from towerline.jobs import refresh
from tests.index.nights import config, tables_of
stored, work, minutes, go = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
print("ready", flush=True)
while not go.exists():
    pass
with tables_of(stored, lambda: 0):
    done = refresh.run(config(work, refresh={"lock_wait_minutes": minutes}))
print(done.version, done.published, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [0.0, 1.0])
def test_two_whole_refreshes_at_once(stored: Path, tmp_path: Path, minutes: float) -> None:
    """Two processes start at the same moment: one publishes; the other finds all done, or is refused."""
    work, go = tmp_path / "work", tmp_path / "go"
    command = [sys.executable, "-c", NIGHTLY, str(stored), str(work), str(minutes), str(go)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)
    ]
    for one in both:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    go.touch()
    outputs = [one.communicate(timeout=300) for one in both]
    live = Registry(work / "registry").current()
    assert Registry(work / "registry").version_names() == [live]
    lines = sorted(out for out, _ in outputs)
    if minutes:
        assert lines == [f"{live} False\n", f"{live} True\n"]
    else:
        assert lines == ["", f"{live} True\n"]
        refused = next(err for out, err in outputs if not out)
        assert "held by process" in refused
