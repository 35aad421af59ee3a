"""The id matcher: finds users' ids as values of columns, as words of texts, and as bytes.

An id is *certain* where the place is a user's (a column or key of that name) or where the id is hardly anything else (a
text of five characters or more). Elsewhere a plain number or a short text is *possible*: it may be a count or a code.
Numbers of up to four digits are not looked for outside users' places, unless the text is a line of the tables.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Int64
from pipelines.contracts.conversion import plain_array
from pipelines.contracts.vocabulary import plain_values

# Shorter texts and numbers occur by chance.
DISTINCTIVE = 5
# In weights, anything shorter occurs by chance: one file in a thousand of 10 MB would have a given id of five bytes.
DISTINCTIVE_BYTES = 6
_SMALL = 2**32
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"-?[0-9]+")
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")


@dataclass(frozen=True)
class Matches:
    """Ids found, as text: ``certain`` ones, and those that may be something else."""

    certain: frozenset[str] = frozenset()
    possible: frozenset[str] = frozenset()

    def __or__(self, other: Matches) -> Matches:
        certain = self.certain | other.certain
        return Matches(certain, (self.possible | other.possible) - certain)

    def __bool__(self) -> bool:
        return bool(self.certain or self.possible)


class IdMatcher:
    """Ids to look for.

    Args:
        ids: of users, int64 or string.
    """

    def __init__(self, ids: Iterable[int | str]) -> None:
        self.texts = frozenset(str(one) for one in ids)
        self._array = pa.array(sorted(self.texts), pa.string())
        self._word_to_ids: dict[str, list[str]] = {}
        self._without_words = []
        for text in sorted(self.texts):
            first = _WORD.search(text)
            if first is None:
                self._without_words.append(text)
            else:
                self._word_to_ids.setdefault(first.group(), []).append(text)

    def values(self, column: pa.Array | pa.ChunkedArray) -> Matches:
        """Those among the values of a column of users' ids, of any plain type."""
        try:
            texts = plain_values(plain_array(column)).cast(pa.string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return Matches()
        texts = pc.replace_substring_regex(texts, r"^\s*(-?[0-9]+)(\.0*)?\s*$", r"\1")
        return Matches(certain=frozenset(pc.unique(texts.filter(pc.is_in(texts, value_set=self._array))).to_pylist()))

    def value(self, value: object) -> Matches:
        """Whether a single value of a user's key is one of them."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = str(value)
        whole = re.fullmatch(r"\s*(-?[0-9]+)(?:\.0*)?\s*", text)
        return Matches(certain=frozenset({text, whole.group(1) if whole else text} & self.texts))

    def text(self, text: str, keys: Sequence[str] = (), *, short: bool = False) -> Matches:
        """Those in a text, between characters that are no part of a word.

        Args:
            text: any text.
            keys: names of users' ids: what follows one, as in ``user_id=5``, is certain.
            short: whether numbers of any length count.
        """
        found = self._occurring(text)
        if "\\" in text:
            found |= self._occurring(_unescaped(text))
        if not found:
            return Matches()
        keyed = found & self._keyed(text, keys)
        rest = found - keyed
        certain = {one for one in rest if len(one) >= DISTINCTIVE and not is_number(one)}
        possible = {one for one in rest - certain if short or not is_short(one)}
        return Matches(frozenset(keyed | certain), frozenset(possible))

    def _occurring(self, text: str) -> set[str]:
        words = set(_WORD.findall(text))
        words |= {word.lstrip("0") for word in words if word.startswith("0") and word.isdigit()}
        hits = [one for word in words & self._word_to_ids.keys() for one in self._word_to_ids[word]]
        return {one for one in [*hits, *self._without_words] if _pattern(one).search(text)}

    def _keyed(self, text: str, keys: Sequence[str]) -> set[str]:
        if not keys:
            return set()
        names = "|".join(map(re.escape, keys))
        found = re.findall(rf"""(?i)(?<!\w)(?:{names})[\s"'\\]*[:=>][\s"'\\]*([^\s"'\\<>,;&}}\]]+)""", text)
        return {one for value in found for one in self.value(value).certain}

    def content(self, raw: bytes) -> Matches:
        """Those in bytes that are no text, such as weights: distinctive ids only, and large integers as eight bytes."""
        found = {
            one
            for one in self._occurring(raw.decode("ascii", "replace"))
            if one.isascii() and len(one) >= DISTINCTIVE_BYTES
        }
        found |= {one for one in self.texts if not one.isascii() and one.encode() in raw}
        certain = frozenset(one for one in found if not is_number(one))
        return Matches(certain, frozenset((found | self._as_eight_bytes(raw)) - certain))

    def numbers(self, values: np.ndarray) -> Matches:
        """Those in an array of integers: large ones only, since small numbers are rows and codes."""
        found = np.intersect1d(values.astype(np.int64, copy=False), self._large)
        return Matches(possible=frozenset(str(one) for one in found.tolist()))

    def _as_eight_bytes(self, raw: bytes) -> set[str]:
        if len(self._large) == 0:
            return set()
        views = (np.frombuffer(raw, "<i8", (len(raw) - offset) // 8, offset) for offset in range(min(8, len(raw))))
        return {one for view in views for one in self.numbers(view).possible}

    @functools.cached_property
    def _large(self) -> Int64:
        numbers = (int(one) for one in self.texts if is_number(one))
        return np.array(sorted(one for one in numbers if _SMALL <= abs(one) < 2**63), np.int64)


def is_number(text: str) -> bool:
    """Whether an id is a whole number."""
    return _NUMBER.fullmatch(text) is not None


def is_short(text: str) -> bool:
    """Whether an id is a number of so few digits that it occurs everywhere."""
    return is_number(text) and len(text.lstrip("-")) < DISTINCTIVE


@functools.lru_cache(maxsize=100_000)
def _pattern(one: str) -> re.Pattern[str]:
    """Finds one id as a word or words of a text; a number also with leading zeros and as a whole float."""
    if is_number(one):
        sign, digits = ("-", one[1:]) if one.startswith("-") else ("", one)
        return re.compile(rf"(?<!\w)(?<!\d\.){sign}0*{digits}(?!\w)(?!\.\d*[1-9])")
    before = r"(?<!\w)" if re.match(r"\w", one[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", one[-1]) else ""
    return re.compile(before + re.escape(one) + after)


def _unescaped(text: str) -> str:
    """The text with JSON's escapes of characters undone."""
    plain = _ESCAPED.sub(lambda match: chr(int(match.group(1), 16)), text)
    return plain.replace('\\"', '"').replace("\\/", "/").replace("\\\\", "\\")
