"""What a key means: nested sections, unions, free names, mistakes."""

from __future__ import annotations

import pytest

from pipelines.contracts.errors import ConfigError
from towerline.commands.cli import main
from towerline.commands.look.keys import explain, type_name
from towerline.config import Config


def test_a_key_has_its_type_limits_default_and_description() -> None:
    (meaning,) = explain("index.ann_recall_at_100")
    assert (meaning.type, meaning.default) == ("number, > 0, <= 1", "0.99")
    assert meaning.description.startswith("Recall target")
    (required,) = explain("index.tree.leaves")
    assert (required.type, required.default) == ("integer, >= 1", "required")
    (unset,) = explain("index.memory_gib")
    assert unset.default == "not set"


def test_a_section_has_its_keys() -> None:
    (meaning,) = explain("index.tree")
    assert meaning.type == "section"
    assert meaning.keys[:2] == ("leaves", "leaves_to_search")


def test_a_key_of_a_union_is_explained_for_each_of_its_models() -> None:
    meanings = {one.only_with: one for one in explain("features.item.max_length")}
    assert {name: one.default for name, one in meanings.items()} == {'kind = "list"': "16", 'kind = "text"': "32"}
    (everywhere,) = explain("features.item.name")
    assert everywhere.only_with == ""
    (kind,) = explain("features.user.kind")
    assert kind.type.startswith('"id" or "categorical"')


def test_a_free_name_stands_for_the_tables_values() -> None:
    (meaning,) = explain("validation.columns.events.quantity.max")
    assert meaning.type == "number"
    (actions,) = explain("actions.buy")
    assert actions.type == "table of number"


@pytest.mark.parametrize("section", Config.model_fields)
def test_every_section_can_be_explained(section: str) -> None:
    for meaning in explain(section):
        assert meaning.type
        for key in meaning.keys:
            assert all(one.type and one.default for one in explain(f"{section}.{key}"))


def test_an_unknown_key_is_refused_with_close_ones() -> None:
    with pytest.raises(ConfigError, match=r"--explain index\.shard: there is no such key\. Did you mean index\.shards"):
        explain("index.shard")
    with pytest.raises(ConfigError, match="no such key"):
        explain("index.shards.more")


def test_types_read_as_toml() -> None:
    assert type_name(tuple[int, ...] | None) == "list of integer"
    assert type_name(dict[str, list[str]]) == "table of list of text"


def test_the_command_explains_without_a_configuration(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOWERLINE_CONFIG", raising=False)
    assert main(["config", "--explain", "index.shards"]) == 0
    assert capsys.readouterr().out.startswith("index.shards: integer, >= 1; default: 1\n")
    assert main(["config", "--explain", "index.shrads"]) == 2
