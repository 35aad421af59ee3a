"""The kind ``text``: the words of a text."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipelines.contracts.arrays import Int32
from pipelines.contracts.conversion.column_type import STRING, ColumnType
from pipelines.contracts.kinds.coded import Coded, encode_lists
from pipelines.contracts.kinds.feature import Array, TrainRows, Writer
from pipelines.contracts.kinds.summary import Summary
from pipelines.contracts.vocabulary import OUT_OF_VOCABULARY, Fitted, FittedCodes

# Characters of words: letters, marks and numbers of Unicode.
_IN_WORDS = r"\p{L}\p{M}\p{N}"
# Up to this number of texts, characters are looked up one by one.
_FEW = 256
# Code points that are looked up together: an alphabet.
_BLOCK = 256


class TextFeature(Coded):
    """Words of a text: NFKD, lower case, split at what is neither letter nor digit; the first ``max_length``."""

    kind: Literal["text"]
    min_frequency: int = Field(
        default=2,
        ge=1,
        description="Train events a value needs for a code of its own, 1 or more; rarer values share one code.",
    )
    max_length: int = Field(default=32, ge=1, description="Values or words read per row, 1 or more; the rest is cut.")
    max_vocabulary: int = Field(
        default=50_000, ge=1, description="Most words that get codes of their own, 1 or more; the most frequent ones."
    )

    expects: ClassVar[str] = "text"
    implied_type: ClassVar[ColumnType | None] = STRING

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``max_length`` codes."""
        return (self.max_length,)

    def accepts(self, arrow_type: pa.DataType) -> bool:
        """Text."""
        return bool(pa.types.is_string(arrow_type))

    def summarise(self, rows: TrainRows) -> Summary:
        """Counts of the words, each as often as its row has train events."""
        return self.counted_lists(words(rows.column(self.source)), rows.frequency)

    def fit_counts(self, counts: pa.Table) -> FittedCodes:
        """The most frequent words, at most ``max_vocabulary``."""
        return FittedCodes.most_frequent(
            counts["value"], counts["count"], min_frequency=self.min_frequency, limit=self.max_vocabulary
        )

    def encode_column(self, fitted: Fitted | None, column: pa.Array, as_of_us: int) -> Int32:
        """``[n, max_length] int32`` codes, left aligned."""
        return encode_lists(self.codes_of(fitted), words(column), self.max_length)

    def writer(self, fitted: Fitted | None, kind: ColumnType | None = None) -> Writer:
        """Directly for texts."""
        through_encode = super().writer(fitted, kind)
        if not isinstance(fitted, FittedCodes) or fitted.hash_buckets is not None or kind not in (None, STRING):
            return through_encode
        source, max_length, get = self.source, self.max_length, fitted.value_to_code.get

        def write(target: Array, record: Mapping[str, Any], as_of_us: int) -> None:
            value = record.get(source)
            if type(value) is not str or not _is_text(value):
                through_encode(target, record, as_of_us)
                return
            found = words(pa.array([value])).to_pylist()[0][:max_length]
            line = target[0]
            line[:] = 0
            line[: len(found)] = [get(word, OUT_OF_VOCABULARY) for word in found]

        return write


def _is_text(value: str) -> bool:
    """Whether Arrow can hold the text: not with half a surrogate pair in it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def words(texts: pa.Array) -> pa.Array:
    """Text -> words: NFKD, lower case, split at whatever is neither letter, mark nor digit; null stays null."""
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    plain = pc.utf8_lower(pc.utf8_normalize(texts.cast(pa.string()), form="NFKD"))
    if len(plain) <= _FEW:
        return _words_of_few(plain)
    spaced = pc.utf8_trim(pc.replace_substring_regex(plain, pattern=rf"[^{_IN_WORDS}]+", replacement=" "), " ")
    split = pc.split_pattern(spaced, pattern=" ")
    # An empty text splits into one empty word: make it an empty list.
    empty = pa.array([[]], type=split.type)[0]
    return pc.if_else(pc.equal(spaced, ""), empty, split)


def _words_of_few(plain: pa.Array) -> pa.Array:
    """The same without the regular expression, which Arrow compiles at each call: 2 ms for one text."""
    texts = plain.to_pylist()
    characters = {character for text in texts if text is not None for character in text}
    breaks = {ord(character): " " for character in characters if not _is_in_words(character)}
    return pa.array(
        [None if text is None else [word for word in text.translate(breaks).split(" ") if word] for text in texts],
        pa.list_(pa.string()),
    )


def _is_in_words(character: str) -> bool:
    block, place = divmod(ord(character), _BLOCK)
    return _in_words(block)[place]


@functools.cache
def _in_words(block: int) -> tuple[bool, ...]:
    """Whether the characters of a block are of words, by Arrow's own tables. No text has half a surrogate pair."""
    points = range(block * _BLOCK, (block + 1) * _BLOCK)
    characters = [" " if 0xD800 <= point < 0xE000 else chr(point) for point in points]
    return tuple(pc.match_substring_regex(pa.array(characters), f"[{_IN_WORDS}]").to_pylist())
