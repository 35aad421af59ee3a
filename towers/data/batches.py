"""Batch: what one training step reads."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.contracts.arrays import Float32, Int8, Int32


@dataclass(frozen=True)
class Batch:
    """One step's examples.

    ``rows [unique]``: the items whose vectors the step needs. ``history [users, history]`` points into ``rows``
    (-1: padding), ``candidates [candidates]`` as well. A query is a user (or, with ``query_users`` and
    ``query_positions``, a position of a user's history). ``positives [pairs, 2]`` are (query, place in ``rows``),
    ascending, ``weights [pairs]`` add up to 1; ``excluded [places, 2]`` are the candidates that are not negatives of
    a query, its user's positives, as (query, candidate); ``seen [places, 2]`` are candidates that are in the query's
    history; ``certain [places, 2]`` are negatives of a query in addition to the candidates, as (query, place in
    ``rows``), with their ``certain_weights``; ``novel [pairs]`` are the weights without repeated items. ``item_moving
    [unique, widths]`` and ``user_moving [users, widths]``: the features that change with the moment, as of the
    moment of the examples; no columns where the encoded ones are used.
    """

    rows: Int32
    users: Int32
    history: Int32
    ages_days: Float32
    actions: Int8
    candidates: Int32
    log_inclusion: Float32
    query_users: Int32
    query_positions: Int32
    positives: Int32
    excluded: Int32
    weights: Float32
    novel: Float32
    seen: Int32
    certain: Int32
    certain_weights: Float32
    item_moving: Float32
    user_moving: Float32
