"""The machine finds what it is there to find: errors of an earlier design, each put back and found.

A change of the product that makes a mutant impossible to write may delete it; one that only renames things must not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, settings
from hypothesis.errors import FlakyFailure
from hypothesis.stateful import run_state_machine_as_test

from index.registry import delta_log, delta_search, deltas
from index.registry.deltas import DeltaState, Fold
from index.retrieval.live import delta_follower, kills
from index.retrieval.live.delta_follower import DeltaFollower
from index.retrieval.retriever import Retriever
from pipelines.contracts.errors import ArtifactError
from tests.index.lifecycle.machine import Lifecycle
from tests.index.lifecycle.model import Published
from tests.index.lifecycle.test_lifecycle import CHECKS

Mutant = Callable[[], contextlib.AbstractContextManager[Any]]


class FreedError(Exception):
    """A search in what was freed; in C++ it would end the process."""


class _Freed:
    """In place of a version's searcher after it was freed."""

    def __getattr__(self, name: str) -> Any:
        raise FreedError(name)


def the_old_version_is_freed_at_once() -> contextlib.AbstractContextManager[Any]:
    move = Retriever._move

    def moved(self: Retriever, live: Any) -> object:
        answering = self._serving()
        kept = move(self, live)
        object.__setattr__(answering, "searcher", _Freed())
        return kept

    return mock.patch.object(Retriever, "_move", moved)


def the_slower_of_two_folds_puts_its_state_back() -> contextlib.AbstractContextManager[Any]:
    def laid_out(self: DeltaFollower) -> bool:
        before = self._now
        if before.waiting:
            state = before.state.after(before.waiting, self._embedder)
            settled = delta_follower.with_state(self.base, before.settled, state, self._growing)
            time.sleep(0.2)
            with self._lock:
                self._now = delta_follower._Progress(self._now.read, state, settled, (), settled)
        return not self._finished()

    return mock.patch.object(DeltaFollower, "_laid_out", laid_out)


@contextlib.contextmanager
def an_upsert_ends_a_pause() -> Iterator[None]:
    upsert = Fold._upsert

    def unpausing(self: Fold, entry: Any) -> None:
        self._resume(entry.ids("upsert"))
        upsert(self, entry)

    def nothing_hidden(state: DeltaState, entries: Any) -> set[Any]:
        return set()

    with mock.patch.object(Fold, "_upsert", unpausing), mock.patch.object(kills, "hidden", nothing_hidden):
        yield


def a_pause_is_of_the_versions_before_it() -> contextlib.AbstractContextManager[Any]:
    opened = DeltaState.opened.__func__  # type: ignore[attr-defined]

    class Later:
        def __init__(self, log: Any, after: int) -> None:
            self.log, self.first = log, after

        def after(self, sequence: int) -> Any:
            return self.log.after(max(sequence, self.first))

        def pauses(self) -> None:
            return None

    def without_older(cls: Any, bundle: Any, log: Any, embedder: Any) -> DeltaState:
        return opened(cls, bundle, Later(log, bundle.delta_sequence), embedder)  # type: ignore[no-any-return]

    return mock.patch.object(DeltaState, "opened", classmethod(without_older))


def a_resume_is_of_the_live_version() -> contextlib.AbstractContextManager[Any]:
    resume = Fold._resume
    newest: dict[str, Any] = {}

    def of_newer_versions(self: Fold, item_ids: Any) -> None:
        name = self._bundle.dir.name
        newest["name"] = max(name, newest.get("name", name))
        if name == newest["name"]:
            resume(self, item_ids)

    return mock.patch.object(Fold, "_resume", of_newer_versions)


def a_changed_ad_has_no_past() -> contextlib.AbstractContextManager[Any]:
    grow = Fold._grow

    def forgetting(self: Fold, before: Any, *rest: Any) -> None:
        grow(self, before, *rest)
        if len(before):
            self._frequency[-len(before) :] = 0
            self._popularity[-len(before) :] = 0

    return mock.patch.object(Fold, "_grow", forgetting)


def a_changed_ad_has_the_usual_value() -> contextlib.AbstractContextManager[Any]:
    def usual(self: Fold, said: Any, laid: Any, rows: Any, places: Any) -> Any:
        value = self._bundle.value
        return None if value is None else np.full(len(places), value.log_values.mean(), np.float32)

    return mock.patch.object(Fold, "_logs", usual)


def columns_left_out_become_null() -> contextlib.AbstractContextManager[Any]:
    of = deltas.Said.of.__func__  # type: ignore[attr-defined]

    def saying_all(cls: Any, entry: Any, *rest: Any) -> Any:
        said = of(cls, entry, *rest)
        every = {name: pa.nulls(len(said.item_ids), rest[1].arrow(name)) for name in rest[0]}
        return dataclasses.replace(
            said,
            columns={**every, **said.columns},
            said=dict.fromkeys(every, np.ones(len(said.item_ids), bool)),
        )

    return mock.patch.object(deltas.Said, "of", classmethod(saying_all))


def changes_made_during_a_night_are_lost() -> contextlib.AbstractContextManager[Any]:
    night = Lifecycle._night

    def sealed_late(self: Lifecycle, *rest: Any) -> tuple[Any, Published]:
        assert self.started is not None
        self.started = (self.log.last(), *self.started[1:])
        return night(self, *rest)

    return mock.patch.object(Lifecycle, "_night", sealed_late)


def a_pause_forgets_the_tuning() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(delta_search._OverBase, "effort", property(lambda _: None))


def a_damaged_entry_blocks_everybody() -> contextlib.AbstractContextManager[Any]:
    read = delta_log.DeltaLog._read

    def strict(self: Any, number: int) -> Any:
        entry = read(self, number)
        if entry is None:
            raise ArtifactError(f"entry {number} is damaged")
        return entry

    return mock.patch.object(delta_log.DeltaLog, "_read", strict)


MUTANTS: tuple[Mutant, ...] = (
    the_old_version_is_freed_at_once,
    the_slower_of_two_folds_puts_its_state_back,
    an_upsert_ends_a_pause,
    a_pause_is_of_the_versions_before_it,
    a_resume_is_of_the_live_version,
    a_changed_ad_has_no_past,
    a_changed_ad_has_the_usual_value,
    columns_left_out_become_null,
    changes_made_during_a_night_are_lost,
    a_pause_forgets_the_tuning,
    a_damaged_entry_blocks_everybody,
)


# How a mutant fails that no answer shows: the call itself ends.
FOUND_BY: dict[Mutant, type[Exception]] = {
    the_old_version_is_freed_at_once: FreedError,
    a_damaged_entry_blocks_everybody: ArtifactError,
}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_machine_finds(mutant: Mutant) -> None:
    many = settings(
        max_examples=100,
        stateful_step_count=40,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=CHECKS,
        phases=(Phase.generate,),
    )
    # What the machine itself says, or what the product says of it: an error of the mutant's own finds nothing.
    expected = FOUND_BY.get(mutant, AssertionError)
    with mutant(), pytest.raises((expected, FlakyFailure)) as found:
        run_state_machine_as_test(Lifecycle, settings=many)
    # A kill hits another moment when the steps are repeated; what was found first is among the errors.
    if isinstance(found.value, FlakyFailure):
        assert any(isinstance(one, expected) for one in found.value.exceptions)
