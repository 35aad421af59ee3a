"""kill -9 at random moments: the reader never sees an error or a mixed version, the next run recovers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from index.building import embedding_job as embed
from index.building import job as build
from index.settings import IndexSettings
from tests.index.nights import write_nights
from tests.index.registry.kills.kill_driver import NIGHTS
from tests.index.serving_bundles import write_bundle
from tests.index.stage_artifacts import write_stages

ROOT = Path(__file__).parents[4]


SCENARIOS = ["publish", "rollback", "change", "compact", "mixed"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Without towers: for the scenarios that do not change ads."""
    root = tmp_path_factory.mktemp("bundles")
    return [str(write_bundle(root / f"bundle-{seed}", items=300 + seed, seed=seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """With an item tower."""
    found = []
    for seed in range(2):
        stages = write_stages(tmp_path_factory.mktemp(f"built-{seed}"), items=200 + seed, users=40, seed=seed)
        embeddings = embed.run(stages.model, stages.features, stages.root / "embeddings")
        settings = IndexSettings(tuning_queries=10)
        found.append(str(build.run(embeddings, stages.model, stages.features, settings, stages.root / "bundle")))
    return found


def bundles_of(scenario: str, request: pytest.FixtureRequest) -> list[str]:
    found: list[str] = request.getfixturevalue("bundles" if scenario in ("publish", "rollback") else "built")
    return found


def run(scenario: str, kills: int, bundles: list[str], tmp_path: Path, minutes: float = 15.0) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "tests.index.registry.kills.kill_driver",
        str(tmp_path / "registry"),
        scenario,
        str(kills),
        "7",
    ]
    done = subprocess.run(
        [*command, *bundles], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60 * minutes
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("scenario", SCENARIOS[:-1])
def test_kills_at_random_moments_leave_the_registry_whole(
    scenario: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    result = run(scenario, 10, bundles_of(scenario, request), tmp_path)
    assert result["wrong"] == [], "\n".join(result["wrong"])
    assert result["kills"] >= 10
    assert result["reads"] > 0


@pytest.mark.slow
def test_two_hundred_kills_of_the_nightly_job_leave_the_registry_whole(tmp_path: Path) -> None:
    write_nights(tmp_path / "nights", NIGHTS)
    result = run("refresh", 200, [str(tmp_path / "nights")], tmp_path, minutes=60.0)
    assert result["wrong"] == [], "\n".join(result["wrong"])
    assert result["kills"] >= 200
    assert result["reads"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_two_hundred_kills_leave_the_registry_whole(
    scenario: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    result = run(scenario, 200, bundles_of(scenario, request), tmp_path, minutes=60.0)
    assert result["wrong"] == [], "\n".join(result["wrong"])
    assert result["kills"] >= 200
    assert result["reads"] > 20
