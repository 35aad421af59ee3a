"""Features of one side, from the columns of its table; and what else those columns serve for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.contracts.kinds.feature import HISTORY_INPUTS, RECORD_KEYS
from pipelines.contracts.schema import Side
from towerline.jobs.init.tables.columns import Numbers
from towerline.jobs.init.tables.profile import Profile
from towerline.jobs.init.tables.types import Typed, moment_of, range_us

_ADVERTISER = re.compile(
    r"advertis|seller|merchant|vendor|manufactur|retailer|publisher|supplier|partner|brand|shop|store", re.IGNORECASE
)
_TITLE = (
    re.compile(r"title|headline", re.IGNORECASE),
    re.compile(r"(product|item|ad)_?name|^name$|caption|label", re.IGNORECASE),
    re.compile(r"desc|text|summary", re.IGNORECASE),
)
_CATEGORY = re.compile(r"categor|genre|department|section|topic|segment", re.IGNORECASE)
_PRICE = re.compile(r"price|cost|amount", re.IGNORECASE)
_FIRST_SEEN = re.compile(r"first|creat|list|releas|publish|since|launch|added|start|upload", re.IGNORECASE)
_CODE_NAME = re.compile(r"(^|_)(id|code|class|type|zip|postcode|group|cluster|segment|level)$|Id$", re.IGNORECASE)
# Numbers of so few different values are names.
_FEW_NUMBERS = 12
_MANY_VALUES = 100
_MOST_CATEGORIES = 100_000
_MOST_SLICE_VALUES = 20
_MOST_SLICES = 4
# The types that a role or kind implies in every format, so that the TOML need not repeat them.
_IMPLIED = {"numeric": "float64", "time_since": "timestamp", "text": "string", "embedding": "embedding"}


@dataclass(frozen=True)
class FeatureChoice:
    """One ``[[features.SIDE]]`` with its evidence."""

    keys: dict[str, object]
    note: str
    column: str


@dataclass
class SideChoice:
    """What the columns of a side's table are for."""

    features: list[FeatureChoice] = field(default_factory=list)
    types: dict[str, ColumnType] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    attributes: list[str] = field(default_factory=list)
    slices: list[str] = field(default_factory=list)
    times: list[str] = field(default_factory=list)
    advertiser: Typed | None = None
    title: Typed | None = None
    category: str | None = None
    price: str | None = None
    first_seen: str | None = None


def choose_side(side: Side, profile: Profile, key: str, leaks: Mapping[str, str], *, has_moments: bool) -> SideChoice:
    """Features, types, attributes and report columns of a side.

    Args:
        side: user or item.
        profile: its table.
        key: its id's column.
        leaks: columns that know what comes later, with the reason.
        has_moments: whether each training example has its moment, from which ages count.
    """
    chosen = SideChoice()
    names: set[str] = set()
    if side == "item":
        chosen.advertiser, chosen.title = _advertiser(profile, key), _title(profile, key)
        chosen.features.append(_id_feature(profile.typed[key], names))
    for name in profile.columns:
        if name == key:
            continue
        typed = profile.typed.get(name)
        reason = _useless(profile, name, typed) or leaks.get(name, "")
        if reason or typed is None:
            chosen.left_out[name] = reason
            continue
        if typed.type.type == "timestamp" and not has_moments:
            _add_time(chosen, side, typed)
        else:
            _add(chosen, side, typed, names)
    for name in profile.table.partial:
        chosen.left_out[name] = "some of the files lack it"
    if side == "item":
        _choose_reports(chosen, profile)
    _declare(chosen, profile)
    return chosen


def _id_feature(typed: Typed, names: set[str]) -> FeatureChoice:
    keys = {**_named(typed.name, names), "kind": "id", "min_frequency": 2}
    return FeatureChoice(keys, f"{typed.distinct:,} items; items with one event share one code", typed.name)


def _useless(profile: Profile, name: str, typed: Typed | None) -> str:
    if not name:
        return "a column without a name"
    column = profile.columns[name]
    if column.unreadable:
        return f"cells of type {column.unreadable}"
    if typed is None:
        return "no values"
    if typed.distinct <= 1:
        return "one value only"
    return ""


def _add(chosen: SideChoice, side: Side, typed: Typed, names: set[str]) -> None:
    kind, keys, note = _kind(side, typed, typed is chosen.title)
    if kind is None:
        chosen.left_out[typed.name] = note
        return
    note = f"{note}{_missing(typed)}{_wrong(typed)}"
    chosen.features.append(FeatureChoice({**_named(typed.name, names), "kind": kind, **keys}, note, typed.name))
    few = kind in ("categorical", "list") and typed.distinct <= 5_000
    if side == "item" and (few or kind in ("numeric", "time_since")) and typed.name.isidentifier():
        chosen.attributes.append(typed.name)
    if kind == "categorical" and typed.distinct <= _MOST_SLICE_VALUES and len(chosen.slices) < _MOST_SLICES:
        chosen.slices.append(typed.name)


def _add_time(chosen: SideChoice, side: Side, typed: Typed) -> None:
    """A time where examples have no moment: for rules and reports alone."""
    chosen.left_out[typed.name] = "a time, and with this split training does not know the age at each event"
    if side == "item" and typed.name.isidentifier():
        chosen.times.append(typed.name)
        chosen.attributes.append(typed.name)
        chosen.types[typed.name] = typed.type


def _kind(side: Side, typed: Typed, is_title: bool) -> tuple[str | None, dict[str, object], str]:
    """The kind of a column's feature, its keys and the evidence; no kind with the reason."""
    name = typed.type.type
    if typed.lists is not None:
        if name == "embedding":
            return "embedding", {"dim": typed.lists.longest}, f"vectors of {typed.lists.longest} numbers"
        length = _rounded(np.quantile(typed.lists.lengths.sample, 0.95), 2, 32)
        return (
            "list",
            {"max_length": length, **_frequency(typed)},
            f"lists of {typed.distinct:,} values, up to {typed.lists.longest}",
        )
    if name == "timestamp":
        first, last = range_us(typed)
        return "time_since", {}, f"{moment_of(first):%Y-%m-%d} to {moment_of(last):%Y-%m-%d}"
    if name == "float64" or (name == "int64" and not _is_code(typed)):
        return _numeric(typed)
    repeated = typed.distinct <= max(0.5 * typed.evidence.present, _FEW_NUMBERS) and typed.distinct <= _MOST_CATEGORIES
    if repeated and not is_title:
        return "categorical", _frequency(typed), f"{typed.distinct:,} distinct"
    return _text(side, typed, is_title)


def _is_code(typed: Typed) -> bool:
    return typed.distinct <= _FEW_NUMBERS or _CODE_NAME.search(typed.name) is not None


def _frequency(typed: Typed) -> dict[str, object]:
    return {"min_frequency": 5} if typed.distinct > _MANY_VALUES else {}


def _numeric(typed: Typed) -> tuple[str | None, dict[str, object], str]:
    numbers = typed.numbers
    middle, high = (float(value) for value in np.quantile(numbers.sample, [0.5, 0.99]))
    skewed = numbers.least >= 0 and high > 0 and (middle == 0 or high / middle > 5.0)
    return (
        "numeric",
        {"scale": "log"} if skewed else {},
        f"{range_of(numbers)}, skewed" if skewed else range_of(numbers),
    )


def range_of(numbers: Numbers) -> str:
    """The range and the median of numbers, as a comment says them."""
    least, most, middle = numbers.least, numbers.most, float(np.median(numbers.sample))
    return f"{_figure(least)} to {_figure(most)}, median {_figure(middle)}"


def _figure(value: float) -> str:
    return f"{value:,.6g}" if abs(value) >= 10_000 else f"{value:.4g}"


def _text(side: Side, typed: Typed, is_title: bool) -> tuple[str | None, dict[str, object], str]:
    column = typed.evidence
    texts = [text for text in column.texts if text]
    if typed.type.type != "string" or any("://" in text for text in texts[:20]):
        return None, {}, f"{typed.distinct:,} distinct in {column.present:,}: nearly each row has its own"
    if not is_title and column.mean_words < 2.0 and column.mean_characters < 30.0:
        return (
            None,
            {},
            f"{typed.distinct:,} distinct in {column.present:,}: codes or names, nearly each row has its own",
        )
    if side == "user":
        return None, {}, f"{typed.distinct:,} distinct texts: may name a person"
    words = np.array([len(re.findall(r"\w+", text)) for text in texts])
    return "text", {"max_length": _rounded(np.quantile(words, 0.95), 4, 32)}, f"texts of {words.mean():.1f} words"


def _rounded(value: float, step: int, most: int) -> int:
    return int(min(most, max(step, math.ceil(value / step) * step)))


def _missing(typed: Typed) -> str:
    share = typed.missing_share
    return f", {share:.1%} missing" if share > 0 else ""


def _wrong(typed: Typed) -> str:
    if typed.wrong == 0:
        return ""
    example = typed.evidence.tried[typed.kind or "float64"].example
    return f". check: {typed.wrong:,} cells are no {typed.type.type}, such as {example!r:.40}; their rows are rejected"


def _named(column: str, names: set[str]) -> dict[str, object]:
    """A feature's name, and the column where it differs: letters, digits and _ only, each name once."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", column)
    name = f"_{name}" if name[:1].isdigit() or not name else name
    if name in HISTORY_INPUTS or (name in RECORD_KEYS and name != "user_id"):
        name = f"{name}_feature"
    while name in names:
        name = f"{name}_"
    names.add(name)
    return {"name": name} if name == column else {"name": name, "column": column}


def _advertiser(profile: Profile, key: str) -> Typed | None:
    found = [
        typed
        for name, typed in profile.typed.items()
        if name != key
        and typed.type.type in ("string", "int64")
        and 1 < typed.distinct <= 0.8 * typed.evidence.present
        and typed.missing_share <= 0.2
    ]
    return _first_match(
        (_ADVERTISER,), found, prefer=lambda typed: (_CODE_NAME.search(typed.name) is not None, typed.distinct >= 10)
    )


def _title(profile: Profile, key: str) -> Typed | None:
    texts = [
        typed
        for name, typed in profile.typed.items()
        if name != key and typed.type.type == "string" and typed.distinct > 1
    ]
    titles = [typed for typed in texts if typed.distinct > min(50, 0.2 * typed.evidence.present) and not _is_url(typed)]
    named = _first_match(_TITLE, titles, prefer=lambda typed: (typed.distinct > 1,))
    if named is not None:
        return named
    wordy = [
        typed for typed in titles if typed.evidence.mean_words >= 2.0 and typed.distinct > 0.2 * typed.evidence.present
    ]
    return max(wordy, key=lambda typed: typed.distinct, default=None)


def _is_url(typed: Typed) -> bool:
    return any("://" in text for text in list(typed.evidence.texts)[:20])


def _first_match(
    patterns: Iterable[re.Pattern[str]], found: list[Typed], prefer: Callable[[Typed], tuple[bool, ...]]
) -> Typed | None:
    for pattern in patterns:
        named = [typed for typed in found if pattern.search(typed.name)]
        if named:
            return max(named, key=prefer)
    return None


def _choose_reports(chosen: SideChoice, profile: Profile) -> None:
    by_column = {feature.column: feature.keys["kind"] for feature in chosen.features}
    categories = [
        profile.typed[column]
        for column, kind in by_column.items()
        if kind == "categorical"
        and 3 <= profile.typed[column].distinct <= 500
        and profile.typed[column].type.type == "string"
    ]
    named = [typed for typed in categories if _CATEGORY.search(typed.name)]
    best = max(named or categories, key=lambda typed: typed.distinct, default=None)
    chosen.category = None if best is None else best.name
    prices = [column for column, kind in by_column.items() if kind == "numeric" and _PRICE.search(column)]
    chosen.price = prices[0] if prices else None
    times = [*chosen.times, *(column for column, kind in by_column.items() if kind == "time_since")]
    chosen.first_seen = next((column for column in times if _FIRST_SEEN.search(column)), None)
    if chosen.advertiser is not None and chosen.advertiser.name in chosen.left_out:
        del chosen.left_out[chosen.advertiser.name]


def _declare(chosen: SideChoice, profile: Profile) -> None:
    """Writes down the types of all columns that are used, except those that role and kind imply in every format."""
    for feature in chosen.features:
        kind = str(feature.keys["kind"])
        typed = profile.typed[feature.column]
        plain = typed.type == ColumnType(type=typed.type.type)
        if kind != "id" and not (plain and _IMPLIED.get(kind) == typed.type.type) and kind != "numeric":
            chosen.types[feature.column] = typed.type
    if chosen.advertiser is not None:
        chosen.types[chosen.advertiser.name] = chosen.advertiser.type
