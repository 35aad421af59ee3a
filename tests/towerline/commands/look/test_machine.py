"""The doctor on machines described to it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from towerline.commands.look.machine import Finding, examine, needed

GOOD = {one.package: importlib.metadata.version(one.package) for one in needed()}


def findings(versions: dict[str, str], environment: dict[str, str], cpuinfo: Path) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(versions.get, environment, cpuinfo)}


def cpu(tmp_path: Path, flags: str) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\nflags : {flags}\n")
    return path


def test_a_good_machine_has_nothing_to_mend(tmp_path: Path) -> None:
    found = findings(GOOD, {}, cpu(tmp_path, "sse avx2 fma"))
    assert {finding.verdict for finding in found.values()} == {"ok"}


def test_the_pins_that_work_together_are_asked_for() -> None:
    asked = {one.package: (str(one.versions), one.extra) for one in needed()}
    assert asked["tensorflow"] == ("==2.20.*", "towers")
    assert asked["apache-beam"] == ("==2.77.*", "pipelines")
    assert asked["scann"] == ("==1.4.2", "base")


def test_a_tensorflow_that_breaks_scann_is_a_problem_with_a_remedy(tmp_path: Path) -> None:
    found = findings({**GOOD, "tensorflow": "2.21.0"}, {}, cpu(tmp_path, "avx2 fma"))
    finding = found["tensorflow (towers)"]
    assert (finding.verdict, finding.found) == ("problem", "2.21.0")
    assert "pip install 'tensorflow==2.20.*'" in finding.remedy


def test_what_an_ad_server_does_not_need_is_a_warning(tmp_path: Path) -> None:
    base = {one.package: GOOD[one.package] for one in needed() if one.extra == "base"}
    assert {"numpy", "pyarrow", "scann", "ai-edge-litert"} <= base.keys()
    found = findings(base, {}, cpu(tmp_path, "avx2 fma"))
    assert found["tensorflow (towers)"].verdict == "warning"
    assert found["apache-beam (pipelines)"].verdict == "warning"
    assert findings({}, {}, cpu(tmp_path, "avx2 fma"))["numpy (base)"].verdict == "problem"


def test_keras_switched_off_and_a_cpu_without_avx2_are_problems(tmp_path: Path) -> None:
    found = findings(GOOD, {"TF_USE_LEGACY_KERAS": "0"}, cpu(tmp_path, "sse fma"))
    assert found["TF_USE_LEGACY_KERAS"].verdict == "problem"
    assert found["cpu"].found == "without avx2"
