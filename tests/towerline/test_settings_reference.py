"""The generated reference of the settings: it is fresh, it is whole, and the configurations fit its JSON Schema."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from pipelines.contracts.errors import ConfigError
from tests.worlds import TOML
from towerline.config import Config
from towerline.settings_reference import MARKDOWN_FILE, SCHEMA_FILE, Key, describe_key, find, json_schema, parts, write

ROOT = Path(__file__).parents[2]


def test_the_documents_are_fresh(tmp_path: Path) -> None:
    write(tmp_path)
    for name in (MARKDOWN_FILE, SCHEMA_FILE):
        assert (ROOT / "docs" / name).read_text() == (tmp_path / name).read_text(), "stale: run `make docs-settings`"


def test_every_key_has_a_description_and_every_section_too() -> None:
    keys = [key for part in parts() for key in part.keys]
    assert [key.path for key in keys if not key.description or key.description.startswith("Only with")] == []
    assert [part.header for part in parts() if not part.description] == []


def test_a_key_is_explained() -> None:
    assert describe_key("refresh.keep_versions") == (
        "refresh.keep_versions: whole number, at least 1\ndefault: 5\n\n"
        "Number of published versions to keep for a rollback, including the live one."
    )
    assert describe_key("index.tree.leaves").splitlines()[1] == "default: required"
    assert describe_key("gates.ann_recall_at_100").splitlines()[1] == "default: not set"


def test_a_key_of_a_union_says_where_it_belongs_and_what_its_defaults_are() -> None:
    assert "default: 3 (windows), 60 (positions), 20 (sets)" in describe_key("towers.epochs")
    assert "default: 0.01 (windows), 1 (positions, sets)" in describe_key("towers.shared_rate")
    assert describe_key("towers.window_days").endswith('Only with `protocol = "windows"`.')
    assert describe_key("towers.decay_days").endswith('and `history_encoder = "recency"`.')
    assert "default: follows from the data" in describe_key("towers.protocol")
    assert describe_key("features.item.dim").endswith('Only with `kind = "embedding"`.')


def test_a_section_lists_its_keys_and_those_of_sections_inside_it() -> None:
    assert describe_key("[retriever]").splitlines()[0] == "[retriever]"
    assert "  retriever.new_items_share" in describe_key("retriever").splitlines()
    assert "  index.tree.leaves" in describe_key("index").splitlines()
    assert "  index.tree.leaves" in describe_key("index.tree").splitlines()


def test_any_name_will_do_where_a_table_has_names_of_its_own() -> None:
    assert describe_key("validation.columns.events.price.max").startswith("validation.columns.NAME.NAME.max: number")
    assert describe_key("actions.buy").startswith("actions: table of numbers")
    assert describe_key("towers.tune.epochs.low").startswith("towers.tune.NAME.low: number")
    with pytest.raises(ConfigError, match=r"index\.shards\.more: expected a key"):
        describe_key("index.shards.more")


@pytest.mark.parametrize("section", Config.model_fields)
def test_every_section_can_be_explained(section: str) -> None:
    found = find(section)
    keys = (found,) if isinstance(found, Key) else found.keys
    assert keys
    for key in keys:
        assert find(key.path) == key


@pytest.mark.parametrize(
    ("wanted", "near"), [("towers.epoch", "towers.epochs"), ("epochs", "towers.epochs"), ("gates.chrun", "gates.churn")]
)
def test_an_unknown_key_names_the_closest_one(wanted: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"{wanted}: expected a key .*did you mean {near}\?"):
        describe_key(wanted)


@pytest.mark.parametrize("name", ["complete_journey.toml", "online_retail_ii.toml", "of the tests"])
def test_configurations_fit_the_json_schema(name: str) -> None:
    path = ROOT / "configs" / name
    raw = tomllib.loads(path.read_text() if path.exists() else TOML)
    plain = json.loads(json.dumps(raw, default=lambda moment: f"{moment}T00:00:00Z"))
    jsonschema.validate(plain, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**plain, "towers": {"epoch": 3}}, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**plain, "gates": {"churn": "much"}}, json_schema())
