"""Memory and disk against estimates."""

from __future__ import annotations

from pathlib import Path

import pytest

import towerline
from tests.worlds import write_marketplace
from towerline.jobs.check import machine
from towerline.jobs.check.machine import available_memory, needs_of, of_machine


def test_available_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 10 kB\nMemAvailable:   2048 kB\n")
    assert available_memory(tmp_path / "meminfo") == 2 << 20
    assert available_memory(tmp_path / "nowhere") is None


def test_too_little_of_the_machine_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = towerline.open(write_marketplace(tmp_path, users=30, items=60, events=300)).config
    needs = needs_of(config, 10**9, 10**6, 10**7, 10**9)
    monkeypatch.setattr(machine, "available_memory", lambda: 1 << 30)
    found = {finding.check: finding for finding in of_machine(config, needs, 10**6)}
    assert found["memory"].verdict == "warning"
    assert found["memory"].found.endswith("1.0 GiB are free.")
    assert needs.disk > 40 * 10**9
    assert sorted(found) == ["disk", "memory"]
    assert needs_of(config, 10**3, 10**3, 10**3, 10**3).disk < needs.disk
