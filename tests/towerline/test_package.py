"""The public package: what it exports, and what importing it does not do."""

from __future__ import annotations

import subprocess
import sys

import pytest

import towerline

HEAVY = ("tensorflow", "apache_beam", "scann", "numpy", "pyarrow", "pandas")


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    found = run(f"import sys, towerline; print([name for name in {HEAVY} if name in sys.modules])")
    assert found.strip() == "[]"


def test_importing_the_package_takes_less_than_three_tenths_of_a_second() -> None:
    program = "import time; begun = time.perf_counter(); import towerline; print(time.perf_counter() - begun)"
    assert min(float(run(program)) for _ in range(3)) < 0.3


def test_the_retriever_needs_neither_tensorflow_nor_beam() -> None:
    found = run(
        "import sys, towerline; towerline.Retriever; "
        "print([name for name in ('tensorflow', 'apache_beam', 'pandas') if name in sys.modules])"
    )
    assert found.strip() == "[]"


@pytest.mark.parametrize("name", towerline.__all__)
def test_every_exported_name_is_there(name: str) -> None:
    assert getattr(towerline, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'towerline' has no attribute 'Retreiver'"):
        _ = towerline.Retreiver  # type: ignore[attr-defined]
