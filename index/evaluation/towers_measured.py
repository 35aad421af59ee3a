"""Which towers are measured on held-out events, and whether they may be.

Reads the windows in a manifest's facts, or the dates in the schema. Towers that have learned from the held-out events
cannot be measured on them.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from index.evaluation.sections.part import Part
from index.registry.bundle import LEARNED_FACT, TOWERS_FACT, TOWERS_WHY_FACT, Bundle
from pipelines.contracts.schema import SPLITS, DatasetSchema, Window
from pipelines.sequences.event_lists import EventLists


class MeasuredTowers(Part):
    """The towers that figures on held-out events belong to.

    backtest: they are the backtest's, not those that are published. bundle: fingerprint of theirs. learned_until: ISO
    moment from which on they have seen no event; held_out_from: ISO moment at which the held-out events begin; None
    where it is not the same moment for all users. seen: they have learned from held-out events.
    weights: "start" if no step of training is in them, else "trained"; why: the reason. None where a bundle does not
    say.
    """

    backtest: bool
    bundle: str
    learned_until: str | None
    held_out_from: str | None
    seen: bool
    weights: str | None = None
    why: str | None = None

    @property
    def note(self) -> str | None:
        """For a reader of the figures; None if there is nothing to say."""
        if self.seen:
            return (
                f"These towers have learned from events until {self.learned_until}, and the held-out events begin at "
                f"{self.held_out_from}: the figures on these are no measure of the version."
            )
        return " ".join(filter(None, [self._weights_note, self._backtest_note])) or None

    @property
    def _weights_note(self) -> str | None:
        if self.weights is None:
            return None
        which = "start, without training" if self.weights == "start" else "trained ones"
        return f"The towers are the {which}: {self.why}."

    @property
    def _backtest_note(self) -> str | None:
        if not self.backtest:
            return None
        until = "" if self.learned_until is None else f", which have learned from events until {self.learned_until}"
        return (
            f"Figures on held-out events, examples and gaps are of the backtest's towers{until}. The published towers "
            "have learned from the held-out events too and cannot be measured on them. The number of items, the size "
            "and the search's recall and latency are those of what is published."
        )


def measured_towers(published: Bundle, held_out_from: int | None) -> MeasuredTowers:
    """The towers of a version that are asked for held-out events.

    Args:
        published: the version's bundle.
        held_out_from: microseconds UTC, see ``begins_us``.
    """
    measured = published.measured
    learned = learned_until_us(measured)
    return MeasuredTowers(
        backtest=measured is not published,
        bundle=measured.manifest.fingerprint,
        learned_until=None if learned is None else shown(learned),
        held_out_from=None if held_out_from is None else shown(held_out_from),
        seen=has_seen(measured, held_out_from),
        weights=measured.manifest.facts.get(TOWERS_FACT),
        why=measured.manifest.facts.get(TOWERS_WHY_FACT),
    )


def has_seen(bundle: Bundle, held_out_from: int | None) -> bool:
    """Whether a bundle's towers have learned from events at or after a moment, as far as that is known."""
    learned = learned_until_us(bundle)
    return learned is not None and held_out_from is not None and learned > held_out_from


def learned_until_us(bundle: Bundle) -> int | None:
    """The moment from which on a bundle's towers have seen no event; None if it is not the same for all users."""
    return begins_us(bundle.manifest.facts, bundle.schema)


def learned_from(bundle: Bundle, events: EventLists) -> EventLists:
    """The events that a bundle's towers have learned from.

    Args:
        bundle: towers that are measured.
        events: of features, which may be of another night: with a split by time its moments count, not those of the
            features.
    """
    whole = "valid" in bundle.manifest.facts.get(LEARNED_FACT, ("train", "valid"))
    bounds = bundle.schema.split.bounds(Window.of(bundle.manifest.facts))
    if bounds is None or bundle.schema.tables.events.time is None:
        return events.before(SPLITS.index("test" if whole else "valid"))
    return events.window(None, bounds[1] if whole else bounds[0])


def begins_us(facts: Mapping[str, Any], schema: DatasetSchema) -> int | None:
    """Microseconds UTC at which the test part begins; None if it is not the same moment for all users.

    Args:
        facts: of a manifest; with rolling windows they have the moments of that night.
        schema: of the same artifact, with the date if dates are absolute.
    """
    bounds = schema.split.bounds(Window.of(facts))
    return None if bounds is None or schema.tables.events.time is None else bounds[1]


def shown(us: int) -> str:
    """The moment in UTC, as a date where it is a midnight."""
    moment = datetime.datetime.fromtimestamp(us / 1e6, datetime.UTC)
    return moment.strftime("%Y-%m-%d" if moment.time() == datetime.time() else "%Y-%m-%dT%H:%M:%SZ")
