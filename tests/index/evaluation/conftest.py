"""A world, its features and an exact bundle, written once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.index.evaluation.worlds import World, make_world, write_bundle, write_features


@dataclass(frozen=True)
class Written:
    """A world on disk."""

    world: World
    features: Path
    bundle: Path


@pytest.fixture(scope="package")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    root = tmp_path_factory.mktemp("world")
    world = make_world()
    return Written(world, write_features(root / "features", world), write_bundle(root / "bundle", world))
