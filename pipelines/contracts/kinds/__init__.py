"""The kinds of features, one module per kind: everything that the pipelines know about a kind is in its class.

A kind's class is also the model of its keys in the schema. ``feature.FeatureKind`` is the interface of a kind: the
column it reads, the types that column may have, the check of its values, the summary of the train window, what is
fitted on it, the encoded array, and the fast writer for a single record. ``coded`` and ``scaled`` hold what several
kinds share. A new kind is a module here and an entry in the union ``Feature`` below; the towers have its layer
(``towers.network.encoders``).

Shapes of the encoded arrays, with ``n`` rows:

===================== ==================================================================
kind                  array
===================== ==================================================================
id, categorical       ``[n] int32`` code
list, text            ``[n, max_length] int32`` codes, 0 after the last
numeric, time_since   ``[n, 2] float32`` scaled value (0 where missing), present 1 or 0
count                 ``[n, windows] float32`` scaled counts
embedding             ``[n, dim] float32``, zeros where missing
===================== ==================================================================
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipelines.contracts.kinds.categorical import CategoricalFeature
from pipelines.contracts.kinds.count import CountFeature
from pipelines.contracts.kinds.embedding import EmbeddingFeature
from pipelines.contracts.kinds.id import IdFeature
from pipelines.contracts.kinds.list import ListFeature
from pipelines.contracts.kinds.numeric import NumericFeature
from pipelines.contracts.kinds.text import TextFeature
from pipelines.contracts.kinds.time_since import TimeSinceFeature

__all__ = [
    "CategoricalFeature",
    "CountFeature",
    "EmbeddingFeature",
    "Feature",
    "IdFeature",
    "ListFeature",
    "NumericFeature",
    "TextFeature",
    "TimeSinceFeature",
]

Feature = Annotated[
    IdFeature
    | CategoricalFeature
    | ListFeature
    | TextFeature
    | NumericFeature
    | TimeSinceFeature
    | CountFeature
    | EmbeddingFeature,
    Field(discriminator="kind"),
]
