"""One of several machines that write to one registry. Run as a process of its own, with a cache folder of its own.

    python -m tests.index.registry.storage.machine URL NUMBER append COUNT
    python -m tests.index.registry.storage.machine URL NUMBER mixed COUNT BUNDLE

Waits for a line on its input, so that all begin at once. Prints one JSON object: what it was told it had done.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from index.registry.delta_log import CHANGE_COLUMN, ID_COLUMN, SAID_COLUMN, DeltaLog
from index.registry.registry import CURRENT, MovedError, Registry, unless_moved
from pipelines.contracts.errors import ArtifactError

KEEP = 3


class Machine:
    """What it does, and notes as done once the call has returned."""

    def __init__(self, url: str, number: int) -> None:
        self.registry, self.number = Registry(url), number
        self.log, self.chance = DeltaLog(self.registry.store), random.Random(number)
        self.appended: list[tuple[int, int, str]] = []
        self.moves: list[tuple[str | None, str]] = []
        self.refused: list[str] = []
        self._note_moves()

    def _note_moves(self) -> None:
        store: Any = self.registry.store
        swap = store.swap

        def noted(name: str, before: bytes | None, content: bytes) -> bool:
            done = bool(swap(name, before, content))
            if done and name == CURRENT:
                self.moves.append((before and before.decode().strip(), content.decode().strip()))
            return done

        store.swap = noted

    def append(self, place: int) -> None:
        time.sleep(self.chance.uniform(0.0, 0.1))  # Who lost a number takes longer than who did not: the other waits.
        item_id, change = self.number * 1_000_000 + place, self.chance.choice(["pause", "resume", "remove"])
        rows = pa.table(
            {ID_COLUMN: [item_id], CHANGE_COLUMN: [change], SAID_COLUMN: pa.nulls(1, pa.list_(pa.string()))}
        )
        self.appended.append((self.log.append(rows).sequence, item_id, change))

    def publish(self, bundle: Path) -> None:
        unless_moved(lambda: self.registry.publish(bundle, keep=KEEP, instead_of=self.registry.current_or_none()))

    def roll_back(self) -> None:
        names = self.registry.version_names()
        self.registry.rollback(self.chance.choice([None, *names]))

    def mixed(self, place: int, bundle: Path) -> None:
        act = self.chance.choice(["append", "append", "publish", "publish", "roll back"])
        try:
            if act == "append":
                self.append(place)
            elif act == "publish":
                self.publish(bundle)
            else:
                self.roll_back()
        except (ArtifactError, MovedError) as err:  # Refused, as it should be where another was faster.
            self.refused.append(str(err))


def main(url: str, number: int, what: str, count: int, *bundle: str) -> None:
    machine = Machine(url, number)
    machine.log.last()  # The first connection takes longer than all the rest.
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    for place in range(count):
        if what == "append":
            machine.append(place)
        else:
            machine.mixed(place, Path(bundle[0]))
    told = {"appended": machine.appended, "moves": machine.moves, "refused": machine.refused}
    print(json.dumps(told), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
