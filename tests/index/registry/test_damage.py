"""Damaged bundles: whatever happened to the files, the bundle is refused and the file is named."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from index.registry.bundle import Bundle
from index.retrieval.retriever import Retriever
from pipelines.contracts.errors import ArtifactError
from tests.index.serving_bundles import write_bundle

Damage = Callable[[Path, random.Random], str]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("damage") / "bundle", items=120, dim=8, leaves=4)


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "manifest.json")


def flip(folder: Path, chance: random.Random) -> str:
    """One bit of one file, the manifest among them."""
    file = chance.choice([*files(folder), folder / "manifest.json"])
    content = bytearray(file.read_bytes())
    place = chance.randrange(len(content))
    content[place] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return file.name


def truncate(folder: Path, chance: random.Random) -> str:
    file = chance.choice([*files(folder), folder / "manifest.json"])
    content = file.read_bytes()
    file.write_bytes(content[: chance.randrange(len(content))])
    return file.name


def lengthen(folder: Path, chance: random.Random) -> str:
    file = chance.choice(files(folder))
    file.write_bytes(file.read_bytes() + b"\\0")
    return file.name


def remove(folder: Path, chance: random.Random) -> str:
    file = chance.choice([*files(folder), folder / "manifest.json"])
    file.unlink()
    return file.name


def swap(folder: Path, chance: random.Random) -> str:
    """Two files of different content change places; either may be named."""
    while True:
        one, two = chance.sample(files(folder), 2)
        if one.read_bytes() != two.read_bytes():
            break
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)
    return f"{one.name}|{two.name}"


def add(folder: Path, chance: random.Random) -> str:
    file = chance.choice([folder, *[entry for entry in folder.iterdir() if entry.is_dir()]]) / "stray.bin"
    file.write_bytes(b"x")
    return file.name


def edit_manifest(folder: Path, chance: random.Random) -> str:
    """A person changes one value of the manifest."""
    file = folder / "manifest.json"
    raw = json.loads(file.read_text())
    name = chance.choice(["kind", "format_version", "created_at", "config", "facts", "inputs", "files", "fingerprint"])
    changed = {
        "kind": "model",
        "format_version": 99,
        "created_at": "1970-01-01T00:00:00+00:00",
        "config": {"edited": True},
        "facts": {**raw["facts"], "items": chance.randrange(1000) + 1000},
        "inputs": {"edited": "0"},
        "files": dict(list(raw["files"].items())[1:]),
        "fingerprint": f"{chance.getrandbits(64):016x}",
    }
    file.write_text(json.dumps({**raw, name: changed[name]}))
    return file.name


DAMAGES: tuple[Damage, ...] = (flip, truncate, lengthen, remove, swap, add, edit_manifest)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damaged_bundle_is_refused_by_the_files_name(bundle: Path, tmp_path: Path, damage: Damage) -> None:
    """143 bundles of each kind of damage: 1,001 in all."""
    chance = random.Random(damage.__name__)
    for number in range(143):
        damaged = Path(shutil.copytree(bundle, tmp_path / str(number)))
        names = damage(damaged, chance).split("|")
        with pytest.raises(ArtifactError) as refused:
            Bundle.open(damaged)
        assert any(name in str(refused.value) for name in names), (names, str(refused.value))
        shutil.rmtree(damaged)


def test_the_retriever_refuses_it_too(bundle: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    truncate(damaged, random.Random(3))
    with pytest.raises(ArtifactError):
        Retriever.open(damaged)
