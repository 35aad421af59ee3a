"""A container runs as any user: without a home, with one that cannot be written, without an entry in /etc/passwd."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UID = 54321
# Reads what the tests wrote, and writes only what belongs to the user or to everybody.
AS_NOBODY_KNOWN = (
    "setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups",
    "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
)  # fmt: skip
HOMES = {
    "no home": {},
    "a home that is not there": {"HOME": "/nonexistent"},
    "a home of somebody else": {"HOME": "/root"},
}


def run(words: list[str], environment: dict[str, str], temporary: Path) -> subprocess.CompletedProcess[str]:
    """The command line in an empty environment, as a user without a name where the tests run as root."""
    user = AS_NOBODY_KNOWN if os.getuid() == 0 and shutil.which("setpriv") else ()
    command = [*user, sys.executable, "-m", "towerline", *words]
    plain = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=plain, cwd="/", timeout=300, check=False)


@pytest.fixture(scope="module")
def world(marketplace: Path) -> Iterator[Path]:
    """The published marketplace where everybody may read it; pytest's own folders are closed."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(marketplace.parent, Path(folder) / "world")
        for path in [Path(folder), *Path(folder).rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield Path(folder) / "world"


@pytest.fixture
def temporary(world: Path) -> Iterator[Path]:
    """A folder that everybody can write, as /tmp is."""
    with tempfile.TemporaryDirectory(dir=world.parent) as folder:
        Path(folder).chmod(0o1777)
        yield Path(folder)


@pytest.mark.parametrize("home", HOMES)
def test_the_verbs_of_a_server_run_as_any_user(world: Path, temporary: Path, home: str) -> None:
    config = ["--config", str(world / "marketplace.toml"), "--work", str(world / "run")]
    calls = [
        ["--version"],
        ["doctor"],
        ["check", *config[:2], "--work", str(temporary / "run"), "--quiet"],
        ["versions", *config],
        ["retrieve", *config, "--user", "u3", "--k", "5"],
    ]
    for words in calls:
        done = run(words, HOMES[home], temporary)
        assert (done.returncode, done.stderr) == (0, ""), (words, done.stdout)
    assert list(temporary.iterdir()) == []
    if os.getuid() == 0 and shutil.which("setpriv"):
        foreign = run(["check", *config], HOMES[home], temporary)
        assert foreign.returncode == 1
        assert "paths.work: " in foreign.stdout
        assert "cannot be written by this user" in foreign.stdout


@pytest.mark.parametrize("home", HOMES)
def test_copies_of_an_object_store_are_kept_below_the_temporary_folder(world: Path, temporary: Path, home: str) -> None:
    store = world / "run" / "registry"
    words = [
        "retrieve",
        "--config",
        str(world / "marketplace.toml"),
        "--registry",
        f"local://{store}",
        "--user",
        "u3",
        "--k",
        "5",
    ]
    first = run(words, HOMES[home], temporary)
    assert (first.returncode, first.stderr) == (0, "")
    kept = [path for path in temporary.iterdir() if path.name.startswith("towerline-")]
    if os.getuid() == 0 and shutil.which("setpriv"):
        assert [path.name for path in kept] == [f"towerline-{UID}"]
        assert kept[0].stat().st_mode & 0o777 == 0o700
    assert run(words, HOMES[home], temporary).stdout == first.stdout


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
def test_a_cache_that_cannot_be_written_names_its_variable(world: Path, temporary: Path) -> None:
    store = world / "run" / "registry"
    words = ["retrieve", "--config", str(world / "marketplace.toml"), "--registry", f"local://{store}", "--user", "u3"]
    done = run(words, {"TOWERLINE_CACHE": "/root/cache"}, temporary)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "Set TOWERLINE_CACHE to a folder that this user can write." in done.stderr
