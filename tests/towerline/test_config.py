"""The whole TOML: overrides, paths, and the errors for mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.contracts.errors import ConfigError
from tests.worlds import TOML
from towerline.config import load_config, plain, with_override


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    path = tmp_path / "m.toml"
    path.write_text(TOML)
    return path


def test_sections_of_every_stage_are_read(config_path: Path) -> None:
    config = load_config(config_path)
    assert config.index.attributes == ("category", "price", "in_stock")
    assert config.work == Path("runs/marketplace")
    assert config.registry == "runs/marketplace/registry"
    assert config.schema_only().dataset.name == "marketplace"
    assert not hasattr(config.schema_only(), "towers")


def test_an_override_goes_before_the_file(config_path: Path) -> None:
    config = load_config(config_path, ["towers.epochs=7", "dataset.name=other", 'index.attributes=["price"]'])
    assert (config.towers.epochs, config.dataset.name, config.index.attributes) == (7, "other", ("price",))


def test_the_work_folder_of_the_command_goes_before_the_file_s(config_path: Path, tmp_path: Path) -> None:
    config_path.write_text(TOML + '\n[paths]\nwork = "run"\nregistry = "s3://bucket/registry"\n')
    assert load_config(config_path).work == tmp_path / "run"
    assert load_config(config_path, work=Path("elsewhere")).work == Path("elsewhere")
    assert load_config(config_path).registry == "s3://bucket/registry"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("towers.epochs", "expected key=value"),
        ("towers.epochs.more=3", "'epochs' is a value, not a section"),
        ("towers.epoch=3", "did you mean towers.epochs?"),
        ("index.ann_recall_at_100=1.5", "index.ann_recall_at_100"),
        ("gates.chrun=0.5", "did you mean gates.churn?"),
    ],
)
def test_a_mistake_in_an_override_is_reported(config_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(config_path, ["towers.epochs=2", override])
    assert message in str(error.value)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a TOML file, found none"):
        load_config(tmp_path / "nowhere.toml")


def test_an_override_changes_nothing_in_place() -> None:
    raw = {"a": {"b": 1}}
    assert with_override(raw, "a.c=2") == {"a": {"b": 1, "c": 2}}
    assert raw == {"a": {"b": 1}}


def test_a_configuration_is_plain_json(config_path: Path) -> None:
    values = plain(load_config(config_path))
    assert values["split"]["valid_from"] == "2025-02-16T00:00:00Z"
