"""What the TOML, the heads of the tables and the machine show is refused before any work, by every job of a night."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import towerline
from pipelines.contracts.errors import ArtifactError, ConfigError, SchemaError, TowerlineError
from tests.towerline.jobs.test_extras import PROGRAM, TOWERS
from tests.worlds import write_marketplace
from towerline.project import Project

# key=value, the key and the name that the error has to say, and the name that it should propose.
MISSPELT = [
    ('index.attributes=["colour", "prize"]', "index.attributes", "prize", "price"),
    ('index.value="prise"', "index.value", "prise", "price"),
    ('evaluation.category="categorie"', "evaluation.category", "categorie", "category"),
    ('evaluation.price="PRICE"', "evaluation.price", "PRICE", "price"),
    ('evaluation.first_seen="titel"', "evaluation.first_seen", "titel", "title"),
    ('evaluation.slices=["country", "county"]', "evaluation.slices", "county", "country"),
    ("evaluation.max_per={ categry = 2 }", "evaluation.max_per", "categry", "category"),
    ('evaluation.eligible="in_stok and price < 5"', "evaluation.eligible", "in_stok", "in_stock"),
]
OF_TABLES = [
    ('tables.events.user_id="userid"', "tables.events.user_id", "userid", "user_id"),
    ('tables.events.time="tyme"', "tables.events.time", "tyme", "time"),
    ('tables.items.title="titel"', "tables.items.title", "titel", "title"),
    ('tables.users.user_id="user"', "tables.users.user_id", "user", "user_id"),
    ("validation.columns.events={ prices = { min = 0.0 } }", "validation.columns.events", "prices", "price"),
    ('features.user=[{ name = "contry", kind = "categorical" }]', "features.user.contry", "contry", "country"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A marketplace whose features are made, so that every stage after them can be asked for."""
    folder = tmp_path_factory.mktemp("world")
    towerline.open(write_marketplace(folder, users=60, items=40, events=1_500), work=folder / "run").features()
    return folder


def opened(world: Path, work: Path, *overrides: str, registry: str | None = None) -> Project:
    return towerline.open(world / "marketplace.toml", work=work, overrides=overrides, registry=registry)


JOBS: dict[str, Callable[[Project], object]] = {
    "features": Project.features,
    "refresh": Project.refresh,
    "train": Project.train,
    "embed": Project.embed,
    "build": Project.build,
}


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize(("override", "key", "wrong", "near"), MISSPELT)
def test_a_misspelt_column_of_a_later_stage_is_refused_by_each_job(
    world: Path, override: str, key: str, wrong: str, near: str, job: str
) -> None:
    before = sorted(world.rglob("*"))
    with pytest.raises(ConfigError) as refused:
        JOBS[job](opened(world, world / "run", override))
    line = next(line for line in str(refused.value).splitlines() if repr(wrong) in line)
    assert line.startswith(f"{key}: expected ")
    assert f"Did you mean {near!r}?" in line
    assert sorted(world.rglob("*")) == before


@pytest.mark.parametrize("job", ["features", "refresh"])
@pytest.mark.parametrize(("override", "key", "wrong", "near"), OF_TABLES)
def test_a_misspelt_column_of_the_tables_is_refused_with_its_key(
    world: Path, tmp_path: Path, override: str, key: str, wrong: str, near: str, job: str
) -> None:
    with pytest.raises(SchemaError, match=f"{key}: expected a column of the .* table, got '{wrong}'. Did you mean "):
        JOBS[job](opened(world, tmp_path / "run", override))
    assert not (tmp_path / "run").exists()


def test_all_mistakes_are_named_at_once(world: Path, tmp_path: Path) -> None:
    project = opened(world, tmp_path / "run", 'index.value="prise"', 'evaluation.price="prize"')
    with pytest.raises(ConfigError) as refused:
        project.refresh()
    assert [line.partition(":")[0] for line in str(refused.value).splitlines()] == ["index.value", "evaluation.price"]


def test_a_rule_that_cannot_be_read_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation.eligible: where: cannot be read at column"):
        opened(world, tmp_path / "run", 'evaluation.eligible="price <"').refresh()


def test_columns_that_the_job_counts_may_be_named(world: Path, tmp_path: Path) -> None:
    """A count feature has a column per window, which no table has."""
    from towerline.jobs.check.preflight import NIGHT, preflight

    item = '{ name = "sold", kind = "count", window_days = [7] }'
    project = opened(world, tmp_path / "run", f"features.item=[{item}]", 'index.attributes=["sold_7"]')
    names = project.config.counts("item")[0].raw_columns
    project = opened(world, tmp_path / "run", f"features.item=[{item}]", f'index.attributes=["{names[0]}"]')
    assert list(preflight(project.config, NIGHT)) == []


@pytest.mark.parametrize(
    ("missing", "extras"),
    [
        (TOWERS, "towers"),
        ("apache_beam", "pipelines"),
        (f"apache_beam,{TOWERS}", "pipelines,towers"),
        ("implicit", "towers"),
    ],
)
def test_a_refresh_names_all_extras_that_its_stages_need(tmp_path: Path, missing: str, extras: str) -> None:
    config = write_marketplace(tmp_path, users=30, items=60, events=300)
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        missing,
        "refresh",
        "--config",
        str(config),
        "--work",
        str(tmp_path / "r"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert f"pip install 'towerline[{extras}]'" in done.stderr
    assert all(name in done.stderr for name in missing.split(","))
    assert not (tmp_path / "r").exists()


def test_the_features_alone_need_no_tensorflow(tmp_path: Path) -> None:
    config = write_marketplace(tmp_path, users=30, items=60, events=300)
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        TOWERS,
        "features",
        "--config",
        str(config),
        "--work",
        str(tmp_path / "r"),
    ]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_what_a_report_needs_is_asked_for_where_the_night_writes_one(world: Path, monkeypatch) -> None:
    from towerline.jobs import extras
    from towerline.jobs.check.preflight import needs_of_night, preflight

    monkeypatch.setattr(extras, "is_installed", lambda module: module not in ("jinja2", "umap"))
    for override, expected in (
        ("refresh.evaluate=false", []),
        ("refresh.evaluate=true", ["towerline[evaluation]"]),
    ):
        config = opened(world, world / "run", override).config
        found = [str(finding) for finding in preflight(config, needs_of_night(config))]
        assert [name for name in expected if name in " ".join(found)] == expected
        assert len(found) == len(expected)
    config = opened(world, world / "run", "refresh.evaluate=true", 'evaluation.map="umap"').config
    assert "towerline[evaluation,umap]" in next(str(finding) for finding in preflight(config, needs_of_night(config)))


def test_a_previous_run_that_is_not_there_is_refused(world: Path, tmp_path: Path) -> None:
    project = opened(world, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"--previous: .*runs/typo: expected a features folder, found none"):
        project.features(previous=tmp_path / "runs" / "typo")
    with pytest.raises(ArtifactError, match=r"manifest.json: missing"):
        project.features(previous=world)
    with pytest.raises(ArtifactError, match=r"manifest.json: not valid JSON"):
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "manifest.json").write_text("{")
        project.features(previous=tmp_path / "broken")
    assert not (tmp_path / "run").exists()
    assert project.features(previous=world / "run" / "features").is_file()


def test_another_stage_is_no_previous_run(world: Path, tmp_path: Path) -> None:
    from pipelines.contracts.manifest import write_artifact

    with write_artifact(tmp_path / "model", kind="model"):
        pass
    with pytest.raises(ConfigError, match=r"--previous: .*: expected an artifact of kind 'features', found 'model'"):
        opened(world, tmp_path / "run").features(previous=tmp_path / "model")


@pytest.mark.parametrize(
    ("registry", "said"),
    [
        ("{}/file", "paths.registry: expected a folder, .*file is a file"),
        ("{}/file/below", "paths.registry: expected a folder, .*file is a file"),
        ("nowhere://bucket/registry", "paths.registry: nowhere://bucket/registry: cannot be opened .Protocol"),
    ],
)
def test_a_registry_that_cannot_be_written_is_refused(world: Path, tmp_path: Path, registry: str, said: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TowerlineError, match=said):
        opened(world, tmp_path / "run", registry=registry.format(tmp_path)).refresh()
    assert not (tmp_path / "run").exists()


def test_a_refusal_takes_less_than_two_seconds_and_loads_neither_tensorflow_nor_beam(world: Path) -> None:
    program = (
        "import sys; from towerline.commands.cli import main; code = main(sys.argv[1:]); "
        "print([name for name in ('tensorflow', 'apache_beam', 'scann') if name in sys.modules]); sys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ["refresh", "--config", str(world / "marketplace.toml"), "--set", 'index.value="prise"', "--quiet"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stdout.strip()) == (2, "[]")
    # Processor time: what others do on the machine is no matter here.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0
