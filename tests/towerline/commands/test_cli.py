"""The command line: help with examples, defaults, exit codes, quiet streams, what goes to Beam."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.contracts.errors import SchemaError
from pipelines.features.reporting.data_summary import DataSummary
from tests.worlds import write_marketplace
from towerline.commands import cli
from towerline.commands.cli import PANELS, main, name_of
from towerline.project import Project

VERBS = [module for modules in PANELS.values() for module in modules]
Output = pytest.CaptureFixture[str]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TOWERLINE_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    return write_marketplace(tmp_path)


@pytest.mark.parametrize("module", VERBS, ids=name_of)
def test_help_of_every_verb_has_examples_that_name_it(module, capsys: Output, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([name_of(module), "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Examples:" in shown
    for example in module.EXAMPLES:
        assert example in shown
        assert example.startswith(f"towerline {name_of(module)}")


def test_the_help_groups_the_verbs_by_purpose(capsys: Output) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(panel) for panel in PANELS]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["refesh"], "Did you mean 'refresh'"),
        (["versions", "--confg", "a.toml"], "--config"),
        (["rollback", "a", "b"], "unexpected extra argument"),
        (["retrieve", "--k", "many"], "--k"),
    ],
)
def test_misuse_ends_with_2_and_a_hint(words: list[str], said: str, capsys: Output) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_the_version_is_the_installed_one(capsys: Output) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("towerline 0.")


def test_no_toml_anywhere_says_how_to_give_one(tmp_path: Path, monkeypatch, capsys: Output) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOWERLINE_CONFIG", raising=False)
    assert main(["versions"]) == 2
    said = capsys.readouterr().err
    assert "towerline versions: " in said
    assert "./towerline.toml" in said
    assert "TOWERLINE_CONFIG" in said


def test_the_toml_is_that_of_the_option_then_the_environment_then_the_folder(
    config: Path, monkeypatch, capsys: Output
) -> None:
    def registry_of(*words: str) -> str:
        assert main(["config", "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)["dataset"]["name"]

    text = config.read_text()
    name = next(line for line in text.splitlines() if line.startswith("name = ")).split('"')[1]
    for other in ("here", "environment"):
        (config.parent / f"{other}.toml").write_text(text.replace(f'name = "{name}"', f'name = "{other}"', 1))
    (config.parent / "here.toml").rename(config.parent / "towerline.toml")
    assert registry_of() == "here"
    monkeypatch.setenv("TOWERLINE_CONFIG", str(config.parent / "environment.toml"))
    assert registry_of() == "environment"
    assert registry_of("--config", str(config)) == name


def test_what_follows_two_dashes_goes_to_beam_unchanged(config: Path, monkeypatch) -> None:
    seen: list[tuple[str, ...]] = []

    def features(self: Project, **_: object) -> Path:
        seen.append(self.beam_args)
        return Path("manifest.json")

    monkeypatch.setattr(Project, "features", features)
    nothing = DataSummary(0, 0, {}, 0, 0, {})
    monkeypatch.setattr(Project, "data_summary", lambda _: nothing)
    assert main(["features", "--config", str(config), "--", "--runner=FlinkRunner", "--config", "x"]) == 0
    assert seen == [("--runner=FlinkRunner", "--config", "x")]


def test_an_error_is_one_line_and_its_exit_code(config: Path, monkeypatch, capsys: Output) -> None:
    def features(self: Project, **_: object) -> Path:
        raise SchemaError("events: expected rows, found none.")

    monkeypatch.setattr(Project, "features", features)
    assert main(["features", "--config", str(config)]) == 1
    assert capsys.readouterr().err == "towerline features: events: expected rows, found none.\n"
    with pytest.raises(SchemaError):
        main(["features", "--config", str(config), "--debug"])


def test_a_library_that_is_missing_is_named_by_its_extra(config: Path, monkeypatch, capsys: Output) -> None:
    monkeypatch.setitem(sys.modules, "pipelines.features.job", None)

    def run(self, call) -> None:
        raise ModuleNotFoundError("No module named 'apache_beam'", name="apache_beam")

    monkeypatch.setattr("towerline.jobs.stages.FeaturesStage.run", run)
    assert main(["features", "--config", str(config)]) == 2
    assert "pip install 'towerline[pipelines]'" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["features", "refresh"])
def test_the_day_on_which_rolling_windows_end_is_a_date(verb: str, config: Path, monkeypatch, capsys: Output) -> None:
    asked = []

    def run(self: Project, *, as_of: str | None, **_: object) -> None:
        asked.append(as_of)
        raise SchemaError("enough")

    with monkeypatch.context() as patch:
        patch.setattr(Project, verb, run)
        assert main([verb, "--config", str(config), "--as-of", "2025-02-20"]) == 1
        assert main([verb, "--config", str(config)]) == 1
    assert asked == ["2025-02-20", None]
    capsys.readouterr()
    assert main([verb, "--config", str(config), "--as-of", "yesterday"]) == 2
    assert "yesterday" in capsys.readouterr().err


def test_an_interrupt_ends_with_130(config: Path, monkeypatch, capsys: Output) -> None:
    def versions(self: Project) -> list[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Project, "versions", versions)
    assert main(["versions", "--config", str(config)]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_the_resolved_configuration_is_toml_that_resolves_to_itself(config: Path, capsys: Output) -> None:
    assert main(["config", "--config", str(config), "--set", "index.shards=2"]) == 0
    first = capsys.readouterr().out
    resolved = config.parent / "resolved.toml"
    resolved.write_text(first)
    assert main(["config", "--config", str(resolved)]) == 0
    assert capsys.readouterr().out == first
    assert "shards = 2" in first


def test_a_reader_that_goes_away_is_no_error(config: Path) -> None:
    program = (
        f"from towerline.commands.cli import main; import sys; sys.exit(main(['config', '--config', {str(config)!r}]))"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


NOISE = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1795863994.822604    2673 partitioner_factory_base.cc:58] Size of sampled dataset",
    "W0000 00:00:1795864717.839083   13456 tf_tfl_flatbuffer_helpers.cc:364] Ignored output_format.",
    "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.",
)


@pytest.mark.parametrize("debug", [False, True])
def test_native_noise_is_dropped_and_all_else_passes(debug: bool) -> None:
    lines = [*NOISE, "E0000 00:00:1795864717.8 1 x.cc:1] a real error", "INFO: of somebody else"]
    program = (
        "import os, sys\nfrom towerline.commands import native_logs\n"
        f"with native_logs.hidden(unless={debug}):\n"
        f"    os.write(2, {os.linesep.join(lines).encode()!r} + b'\\n')\n"
        "    print('ours', file=sys.stderr)\n"
        "print('after', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    shown = set(done.stderr.splitlines())
    expected = {*lines[len(NOISE) :], "ours", "after"} | (set(NOISE) if debug else set())
    assert shown == expected


def test_streams_without_a_descriptor_are_left_alone(config: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert cli.main(["versions", "--config", str(config)]) == 0
