"""The split of a schema: which events are held out."""

from __future__ import annotations

import itertools
from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.contracts.configuration import MomentOrOrder, Section
from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.schema.window import Window, moment

SplitName = Literal["train", "valid", "test"]
# Codes of SplitName in the sequences; the order is the order of time: a split's history is what has a smaller code.
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")
# A hundred years: what is longer is a mistake, and no date.
_MAX_DAYS = 36_500


class Split(Section):
    """Which events are held out. Exactly one way:

    - ``valid_days`` and ``test_days``: rolling windows, in whole days (UTC) counted back from the first midnight after
      the newest event, or from ``--as-of``. ``history_days`` bounds what is used at all.
    - ``valid_from`` and ``test_from``: by time (or order), half open: ``[.., valid_from)`` is train,
      ``[valid_from, test_from)`` valid, the rest test. ``test_until`` drops what comes later.
    - ``column``: a column with the words train, valid, test; ``valid_fraction`` moves that share of the train
      events to valid, chosen by a stable hash.
    - ``leave_last_out``: each user's last event is test, the one before valid, the rest train.
    """

    valid_days: int | None = Field(
        default=None,
        ge=1,
        le=_MAX_DAYS,
        description="Rolling windows: length of the validation part, in days before the test part. For a nightly job.",
    )
    test_days: int | None = Field(
        default=None,
        ge=1,
        le=_MAX_DAYS,
        description="Rolling windows: length of the test part, in days before the first midnight (UTC) after the "
        "newest event, or before `--as-of`.",
    )
    history_days: int | None = Field(
        default=None,
        ge=1,
        le=_MAX_DAYS,
        description="Rolling windows: events older than this many days before the end of the test part are not used. "
        "Not set: all are.",
    )
    valid_from: MomentOrOrder | None = Field(
        default=None, description="Start of the validation part: a date or timestamp (UTC), or a value of `order`."
    )
    test_from: MomentOrOrder | None = Field(default=None, description="Start of the test part.")
    test_until: MomentOrOrder | None = Field(
        default=None, description="End of the test part; later events are dropped. Not set: no end."
    )
    column: str | None = Field(default=None, description="Column of the events with the words train, valid, test.")
    valid_fraction: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="With `column`: share of the train events to move to validation, chosen by a stable hash.",
    )
    leave_last_out: bool = Field(
        default=False, description="Each user's last event is test, the one before validation, the rest train."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        by_time = self.valid_from is not None or self.test_from is not None
        rolls = self.valid_days is not None or self.test_days is not None
        if sum([by_time, rolls, self.column is not None, self.leave_last_out]) != 1:
            raise ValueError(
                "give exactly one of valid_from with test_from, valid_days with test_days, column, "
                "leave_last_out = true"
            )
        if by_time:
            self._check_bounds()
        self._check_days()
        return self

    def _check_bounds(self) -> None:
        if self.valid_from is None or self.test_from is None:
            raise ValueError("valid_from and test_from go together")
        bounds = [self.valid_from, self.test_from]
        if self.test_until is not None:
            bounds.append(self.test_until)
        if len({type(bound) for bound in bounds}) != 1:
            raise ValueError("valid_from, test_from and test_until must be of one type (all dates or all integers)")
        if any(early >= late for early, late in itertools.pairwise(bounds)):  # type: ignore[operator]
            raise ValueError("expected valid_from < test_from < test_until")

    def _check_days(self) -> None:
        if (self.valid_days is None) != (self.test_days is None):
            raise ValueError("valid_days and test_days go together")
        if self.valid_days is None or self.test_days is None:
            if self.history_days is not None:
                raise ValueError("history_days needs rolling windows: valid_days and test_days")
            return
        if self.test_until is not None:
            raise ValueError("rolling windows end at the newest event: instead of test_until give --as-of DATE")
        held_out = self.valid_days + self.test_days
        if self.history_days is not None and self.history_days <= held_out:
            raise ValueError(
                f"expected history_days > valid_days + test_days = {held_out}, got {self.history_days}: "
                "no day would be left to train on"
            )

    @property
    def rolls(self) -> bool:
        """Whether the windows roll."""
        return self.test_days is not None

    def window(self, end_us: int, *, whole: bool = False) -> Window:
        """The windows that roll up to a midnight; ``whole``: with all events before it in train."""
        assert self.valid_days is not None
        assert self.test_days is not None
        test_from = end_us if whole else end_us - self.test_days * US_PER_DAY
        return Window(
            history_from=None if self.history_days is None else end_us - self.history_days * US_PER_DAY,
            valid_from=end_us if whole else test_from - self.valid_days * US_PER_DAY,
            test_from=test_from,
            end=end_us,
        )

    def bounds(self, window: Window | None) -> tuple[int, int] | None:
        """Where valid and test begin: microseconds UTC, or values of the order; None if they begin at no one moment.

        Args:
            window: of the run, where the windows roll.
        """
        if window is not None:
            return window.bounds
        if self.valid_from is None or self.test_from is None:
            return None
        return moment(self.valid_from), moment(self.test_from)
