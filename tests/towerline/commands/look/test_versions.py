"""``towerline versions``: which towers each version has, and why the live one has them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from index.registry.registry import Registry
from tests.index.evaluation.worlds import make_world, write_bundle
from towerline.commands.look.versions import verb


def test_versions_say_which_towers_they_have_and_why(tmp_path: Path) -> None:
    """Bundles of before do not say."""
    world, registry = make_world(items=300, users=20), Registry(tmp_path / "registry")
    said = [{}, {"towers": "trained", "towers_why": "an earlier reason"}, {"towers": "start", "towers_why": "no epoch"}]
    names = [
        registry.publish(write_bundle(tmp_path / f"bundle{night}", world, items=298 + night, facts=facts))
        for night, facts in enumerate(said)
    ]
    answer = verb(SimpleNamespace(project=registry))  # type: ignore[arg-type]
    last = {name: next(line for line in answer.lines if name in line).split()[-1] for name in names}
    assert last == dict(zip(names, ["0", "trained", "start"], strict=True))
    assert answer.lines[-1] == f"towers of {names[-1]}: start, no epoch"
    towers = {one["name"]: one["facts"].get("towers") for one in answer.facts["versions"]}
    assert towers == dict(zip(names, [None, "trained", "start"], strict=True))
