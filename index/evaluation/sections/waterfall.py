"""The waterfall: where recall is lost, found by replacing the exact version of each stage by the real one, in turn.

Lost recall is ``1 - recall@k`` of what is served. The stages are between a perfect answer and the served one; a stage's
part is the recall before it minus the recall after it, on the same users, so that the parts sum to the whole. A part
may be negative: a stage can help by chance.

1. model: exact search over the vectors still misses the truth that the version has.
2. staleness: truth the version does not have at all. It is assumed that it would be found as often as the user's
   other truth (as the mean user's, if the user has no other).
3. pruning: only the tree's tuned leaves are searched, everything in them scored exactly.
4. quantisation: the tuned reordering depth decides which items are scored exactly.
5. blending: items from sources other than the search, if the retriever has any.
6. filters, crowding, value: ``eligible``, ``max_per`` and ``value_weight`` of ``[evaluation]``, applied in turn.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from index.evaluation.measures.bootstrap import bootstrap
from index.evaluation.measures.exact_top_k import exact_top_k
from index.evaluation.measures.metrics import user_metrics
from index.evaluation.ranking import blocks
from index.evaluation.sections.part import Bounds, Figure, Part
from index.evaluation.settings import EvaluationSettings
from index.evaluation.subject import Subject
from index.registry.bundle import Bundle
from index.search.searcher import Effort, Neighbors, Vectors
from pipelines.contracts.arrays import Bools, Float64, Int32
from pipelines.progress import SILENT, Progress
from pipelines.sequences.item_sets import ItemSets

MODEL = "model"


class Loss(Part):
    """What one stage loses: mean over users with its bootstrap interval."""

    lost: Figure
    interval: Bounds


class Waterfall(Part):
    """Where recall is lost.

    recall: ``recall@k`` of what is served. lost: ``1 - recall``, the sum of the stages'. culprit: the stage that
    loses most apart from the model; the model if no other loses anything. stages: in their order.
    """

    k: int
    recall: float
    lost: float
    culprit: str
    stages: dict[str, Loss]


def _culprit(means: dict[str, float]) -> str:
    others = {stage: mean for stage, mean in means.items() if stage != MODEL and mean > 0.0}
    return max(others, key=others.__getitem__) if others else MODEL


def measure_waterfall(subject: Subject, settings: EvaluationSettings, *, progress: Progress = SILENT) -> Waterfall:
    """Ranks the held-out users once per stage.

    Raises:
        SchemaError: ``eligible`` or ``max_per`` of the settings name what the version does not have.
    """
    k, truth = settings.waterfall_k, subject.data.held_out.truth
    answers = _ask(subject, settings, progress=progress)
    recalls = {name: user_metrics(rows, truth, (k,)).at("recall", k) for name, rows in answers.items()}
    fresh = fresh_recall(answers["exact"], truth, subject.in_catalogue, k)
    steps = [np.where(np.isfinite(fresh), 1.0, np.nan), fresh, *recalls.values()]
    names = [MODEL, "staleness", *(stage for stage in answers if stage != "exact")]
    lost = np.stack([before - after for before, after in itertools.pairwise(steps)], axis=1)
    present = np.isfinite(lost).all(axis=1)
    intervals = bootstrap(lost[present], resamples=settings.resamples, confidence=settings.confidence)
    recall = float(steps[-1][present].mean())
    return Waterfall(
        k=k,
        recall=recall,
        lost=1.0 - recall,
        culprit=_culprit({name: interval.mean for name, interval in zip(names, intervals, strict=True)}),
        stages={
            name: Loss(lost=interval.mean, interval=(interval.low, interval.high))
            for name, interval in zip(names, intervals, strict=True)
        },
    )


def fresh_recall(exact: Int32, truth: ItemSets, in_catalogue: Bools, k: int) -> Float64:
    """``[users] float64``: recall of exact search if the version had every item of the truth.

    Args:
        exact: ``[users, k] int32`` rows that exact search finds.
        truth: the same users.
        in_catalogue: ``[items] bool``: the version has the item.
        k: the cut-off.
    """
    inside = truth.where(in_catalogue[truth.rows])
    rate = user_metrics(exact, inside, (k,)).at("recall", k)
    some = np.isfinite(rate)
    mean = float(rate[some].mean()) if some.any() else 0.0
    missed = np.where(some, rate, mean)
    return np.where(truth.counts > 0, missed, np.nan)


def _ask(subject: Subject, settings: EvaluationSettings, *, progress: Progress) -> dict[str, Int32]:
    """Each stage's rows ``[users, k] int32`` in the features' catalogue, in the order of the stages."""
    users, k = subject.data.held_out.num_users, settings.waterfall_k
    rules = rules_of(settings)
    names = ["exact", "pruning", "quantisation", "blending", *rules]
    found = {name: np.full((users, k), -1, np.int32) for name in names}
    with progress.bar(users, "waterfall", "users") as bar:
        for places in blocks(users):
            records = subject.records(places)
            plain = subject.answers(records, k)
            asked = subject.searches(records, plain)
            searched = search_stages(subject.bundle, asked.vectors, k)
            for name, neighbors in searched.items():
                found[name][places] = subject.with_searched(plain, asked.searched, neighbors)
            found["blending"][places] = subject.rows_of_answers(plain, k)
            for name, rule in rules.items():
                answers = subject.answers(records, k, **rule) if rule else plain
                found[name][places] = subject.rows_of_answers(answers, k)
            bar.advance(len(places))
    return found


def search_stages(bundle: Bundle, vectors: Vectors, k: int) -> dict[str, Neighbors]:
    """Exact search, the tuned leaves scored exactly, the searcher as tuned: ``[users, k]`` each.

    Args:
        bundle: the version.
        vectors: ``[users, dim] float32``.
        k: neighbors.
    """
    exact = exact_top_k(vectors, bundle.vectors, k)
    tree = bundle.spec.tree
    if bundle.spec.engine == "exact" or tree is None:
        return {"exact": exact, "pruning": exact, "quantisation": exact}
    everything = Effort(leaves=tree.leaves_to_search, reorder=bundle.num_items)
    return {
        "exact": exact,
        "pruning": bundle.searcher.search_batch(vectors, k, everything),
        "quantisation": bundle.searcher.search_batch(vectors, k),
    }


def rules_of(settings: EvaluationSettings) -> dict[str, dict[str, Any]]:
    """The arguments of a retrieval by stage: each includes those of the stages before it."""
    filters: dict[str, Any] = {} if settings.eligible is None else {"where": settings.eligible}
    crowding = {**filters, **({"max_per": settings.max_per} if settings.max_per else {})}
    value = {**crowding, **({"value_weight": settings.value_weight} if settings.value_weight else {})}
    return {"filters": filters, "crowding": crowding, "value": value}
