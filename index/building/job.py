"""Builds the bundle: ``towerline build``.

Reads embeddings, the model and the features they were made from; writes an artifact of kind ``bundle``
(docs/bundle-format.md): everything that answers a request, with a searcher tuned to the recall target on held-out
users, and golden probes to check it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index.building.forecast import Forecast, check_budget, predict
from index.building.item_tower_conversion import convert
from index.building.sharding_job import ShardsJob
from index.building.stored_types import with_stored_types
from index.building.tuning.measurement import Queries, measure
from index.building.tuning.tuner import Tuned, tune
from index.building.value_scale import add_value
from index.building.vector_statistics import vector_statistics
from index.inference.item_features import feature_columns, write_item_features
from index.inference.item_rows import write_items
from index.inference.record_embedder import RecordEmbedder
from index.inference.user_records import UserRecords
from index.registry.bundle import (
    BACKTEST_DIR,
    EXACT_WHY_FACT,
    FORMAT_VERSION,
    ITEM_FEATURES_FILE,
    ITEM_TOWER_DIR,
    ITEM_TOWER_FILE,
    ITEMS_FILE,
    KIND,
    LEARNED_FACT,
    POPULARITY_FILE,
    PROBES_DIR,
    QUERY_TOWER_FILE,
    SCANN_DIR,
    SCHEMA_FILE,
    SEARCHER_FILE,
    TOWERS_FACT,
    TOWERS_FILE,
    TOWERS_WHY_FACT,
    USER_TOWER_DIR,
    USERS_FILE,
    VOCABULARY_DIR,
    Bundle,
    Probes,
    read_json,
    save_probes,
)
from index.registry.searcher_spec import SearcherSpec
from index.search.exact import VECTORS_FILE, ExactSearcher, load_vectors
from index.search.searcher import Neighbors, SavableSearcher, Vectors, check_vectors
from index.settings import RETRIEVER_FILE, IndexSettings, RetrieverSettings
from pipelines.contracts.errors import ArtifactError, ConfigError
from pipelines.contracts.manifest import Artifact, open_artifact, write_artifact
from pipelines.contracts.schema import SPLITS, DatasetSchema
from pipelines.contracts.schema.window import WINDOW_FACT
from pipelines.contracts.vocabulary import Vocabulary
from pipelines.progress import SILENT, Progress
from pipelines.sequences.popularity import HalfLife, chosen_half_life, popularity
from pipelines.sequences.reader import load_encoded, load_items

# Neighbors stored per golden probe.
_PROBE_K = 20
# Number of users whose answers are stored as golden probes and checked when the bundle is published.
_PROBES = 32
_TEST = SPLITS.index("test")
# Chooses the users for tuning, checking and probes: the same ones every night, whatever the towers' seed.
_SEED = 17
# Users whose vectors tell how users ask, next to those who are measured: a second moment of hundreds of dimensions
# wants several times as many.
_OTHER_USERS = 4000
# With fewer users than this apart from the probes, the same users are used for tuning, checking and probes.
_FEWEST_APART = 20
# Number of items whose vectors the converted item tower must reproduce.
_COMPARED_ITEMS = 1000
# In a bundle's facts: which model a figure is of.
MEASURED_BY = "measured_by"
# In a bundle's facts: the half-life of popularity, and what it was chosen by.
POPULARITY = "popularity"
_COPIED = (TOWERS_FILE, QUERY_TOWER_FILE, VOCABULARY_DIR, ITEM_TOWER_DIR, USER_TOWER_DIR)


@dataclass(frozen=True)
class _Sources:
    """The inputs of a build, opened."""

    embeddings: Artifact
    model: Artifact
    features: Artifact
    schema: DatasetSchema
    vocabulary: Vocabulary
    vectors: Vectors
    towers: dict[str, Any]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of each input, for the manifest."""
        named = {"embeddings": self.embeddings, "model": self.model, "features": self.features}
        return {name: artifact.manifest.fingerprint for name, artifact in named.items()}

    @property
    def window(self) -> dict[str, Any]:
        """With rolling windows, the fact that says which events the towers have learned from; else nothing."""
        facts = self.features.manifest.facts
        return {WINDOW_FACT: facts[WINDOW_FACT]} if WINDOW_FACT in facts else {}


def run(
    embeddings: Path,
    model: Path,
    features: Path,
    settings: IndexSettings,
    out: Path,
    *,
    retriever: RetrieverSettings | None = None,
    beam_args: Sequence[str] = (),
    progress: Progress = SILENT,
    backtest: Path | None = None,
    last: Bundle | None = None,
) -> Path:
    """Builds the bundle and returns ``out``.

    Args:
        embeddings: the item vectors.
        model: the towers that made them.
        features: the features the model was trained on.
        settings: target, engine, attributes, budgets.
        out: where the bundle goes.
        retriever: how requests are answered unless a call says otherwise; None means the defaults.
        beam_args: options of Beam for the shards; none means the runner inside this process.
        progress: shows what is predicted and measured.
        backtest: the bundle whose towers have not seen the held-out windows, to be kept inside this one.
        last: the version published last. If it was built with the same settings, its tree is tried first.

    Raises:
        ArtifactError: an input is missing or damaged, or the inputs do not belong together.
        ConfigError: an attribute is unknown, or the build would exceed a budget (then nothing was started).
    """
    with progress.waiting("reading embeddings and model"):
        sources = _open(embeddings, model, features)
        inner = None if backtest is None else Bundle.open(backtest)
        items = item_table(sources, settings)
    predicted = predict(len(sources.vectors), sources.vectors.shape[1], settings, progress)
    progress.line(predicted.line)
    check_budget(predicted, settings)
    with (
        progress.waiting("build"),
        write_artifact(
            out,
            kind=KIND,
            format_version=FORMAT_VERSION,
            inputs=sources.fingerprints | ({} if inner is None else {BACKTEST_DIR: inner.manifest.fingerprint}),
            config=config_of(settings, retriever),
        ) as draft,
    ):
        started = time.perf_counter()
        _copy(sources, draft.dir)
        if inner is not None:
            shutil.copytree(inner.dir, draft.dir / BACKTEST_DIR)
        (draft.dir / RETRIEVER_FILE).write_text((retriever or RetrieverSettings()).model_dump_json())
        _convert_item_tower(sources, draft.dir, progress)
        write_items(items, draft.dir / ITEMS_FILE)
        raw = item_features(sources)
        write_item_features(raw.schema, [raw], draft.dir / ITEM_FEATURES_FILE)
        with progress.waiting("embedding held-out users"):
            known = UserRecords.open(sources.features.dir)
            users = _users(sources, settings, draft.dir, known)
        half_life = _write_popularity(sources, known, inner, draft.dir, progress)
        tuned = tune(
            sources.vectors,
            users.tuning,
            users.check,
            settings,
            progress,
            _shards_job(sources.embeddings.dir / VECTORS_FILE, draft.dir, settings, beam_args),
            last=None if last is None or not _same_index(last, settings) else last.spec,
        )
        if settings.value is not None:
            column, queries = items[settings.value], users.tuning.vectors
            with progress.waiting("search by value"):
                searcher = add_value(draft.dir, tuned, sources.vectors, column, settings.value, queries)
            tuned = _with_searcher(tuned, searcher, users)
        save_searcher(tuned, draft.dir)
        if tuned.spec.why_exact is not None:
            progress.line(tuned.spec.why_exact)
        save_probes(users.probes, draft.dir / PROBES_DIR)
        draft.facts.update(facts_of(sources, tuned.spec), seconds=time.perf_counter() - started)
        draft.facts[POPULARITY] = half_life
        if inner is not None:
            draft.facts[MEASURED_BY] = _measured_by(sources, inner)
    return out


def plan(
    embeddings: Path,
    settings: IndexSettings,
    *,
    items: int | None = None,
    dim: int | None = None,
    progress: Progress = SILENT,
) -> Forecast:
    """Predicts what ``run`` will need, and builds nothing.

    Args:
        embeddings: the item vectors; their size counts if none is given.
        settings: engine, storages, shards, budgets.
        items, dim: another size than that of ``embeddings``, which then need not be there.
        progress: shows that the speed of this machine is being measured.

    Raises:
        ArtifactError: no size is given, and the embeddings are missing or damaged.
        ConfigError: the build would exceed a budget.
    """
    if items is None or dim is None:
        shape = load_vectors(open_artifact(embeddings, kind="embeddings", verify=False).dir / VECTORS_FILE).shape
        items, dim = items or shape[0], dim or shape[1]
    predicted = predict(items, dim, settings, progress)
    check_budget(predicted, settings)
    return predicted


def config_of(settings: IndexSettings, retriever: RetrieverSettings | None) -> dict[str, Any]:
    """The configuration that a bundle's manifest records and a refresh compares."""
    return {**settings.model_dump(mode="json"), "retriever": (retriever or RetrieverSettings()).model_dump(mode="json")}


def _same_index(bundle: Bundle, settings: IndexSettings) -> bool:
    """Whether a bundle was built with these settings, ``[retriever]`` aside."""
    built_with = {name: value for name, value in bundle.manifest.config.items() if name != "retriever"}
    return built_with == settings.model_dump(mode="json")


def _open(embeddings: Path, model: Path, features: Path) -> _Sources:
    opened = _Sources(
        embeddings=open_artifact(embeddings, kind="embeddings"),
        model=open_artifact(model, kind="model"),
        features=open_artifact(features, kind="features", verify=False),
        schema=DatasetSchema.model_validate_json((model / SCHEMA_FILE).read_bytes()),
        vocabulary=Vocabulary.load(model / VOCABULARY_DIR),
        vectors=load_vectors(embeddings / VECTORS_FILE),
        towers=read_json(model / TOWERS_FILE),
    )
    for name, fingerprint in opened.fingerprints.items():
        made_from = opened.embeddings.manifest.inputs.get(name, fingerprint)
        if made_from != fingerprint:
            raise ArtifactError(
                f"{embeddings}: made from {name} {made_from}, but {name} given is {fingerprint}. Run `towerline embed`."
            )
    if len(opened.vocabulary.item_ids) != len(opened.vectors):
        raise ArtifactError(
            f"{embeddings}: expected {len(opened.vocabulary.item_ids)} vectors, one per item of {model}, found "
            f"{len(opened.vectors)}. Run `towerline embed`."
        )
    check_vectors(opened.vectors, str(embeddings))
    return opened


def item_table(sources: _Sources, settings: IndexSettings) -> pa.Table:
    """``item_id``, attributes, advertiser and title, in row order.

    Raises:
        ConfigError: an attribute is not a column of the items table.
    """
    table = load_items(sources.features.dir)
    schema = sources.schema
    roles = schema.tables.items
    named = [] if roles is None else [roles.advertiser_id, roles.title]
    value = [] if settings.value is None else [settings.value]
    columns = {"item_id": sources.vocabulary.item_ids}
    for name in dict.fromkeys([*settings.attributes, *value, *named]):
        if name is None:
            continue
        if name not in table.column_names:
            known = ", ".join(table.column_names)
            raise ConfigError(f"index.attributes: expected columns of the items table ({known}), got {name!r}.")
        columns[name] = table[name].combine_chunks()
    return pa.table(columns)


def item_features(sources: _Sources) -> pa.Table:
    """The raw columns that item features read, counts included, in row order: so that a changed ad keeps what its row
    does not say."""
    table = load_items(sources.features.dir)
    return table.select([name for name in feature_columns(sources.schema) if name in table.column_names])


def _copy(sources: _Sources, target: Path) -> None:
    for name in _COPIED:
        source = sources.model.dir / name
        if source.is_dir():
            shutil.copytree(source, target / name)
        elif source.exists():
            shutil.copyfile(source, target / name)
        elif name not in (ITEM_TOWER_DIR, USER_TOWER_DIR):
            raise ArtifactError(f"{source}: missing. Run `towerline train`.")
    shutil.copyfile(sources.embeddings.dir / VECTORS_FILE, target / VECTORS_FILE)
    schema = with_stored_types(sources.schema, sources.features.dir, sources.vocabulary.item_ids.type)
    (target / SCHEMA_FILE).write_text(schema.model_dump_json(indent=1))


def _convert_item_tower(sources: _Sources, target: Path, progress: Progress) -> None:
    """Writes the item tower for LiteRT, compared with the first vectors, so that deltas need no TensorFlow."""
    if not (target / ITEM_TOWER_DIR).exists():
        progress.line("the model has no item tower: this bundle will accept no deltas")
        return
    first = min(len(sources.vectors), _COMPARED_ITEMS)
    encoded = {name: values[:first] for name, values in load_encoded(sources.features.dir, "item").items()}
    with progress.waiting("converting the item tower"):
        convert(target / ITEM_TOWER_DIR, target / ITEM_TOWER_FILE, encoded, sources.vectors[:first])


@dataclass(frozen=True)
class _Users:
    """Held-out users in three parts, which are disjoint if there are enough users."""

    tuning: Queries
    check: Queries
    probes: Probes


def _users(sources: _Sources, settings: IndexSettings, target: Path, users: UserRecords) -> _Users:
    schema, item_ids = sources.schema, sources.vocabulary.item_ids
    if settings.include_users:
        everyone = users.table(np.arange(users.num_users), schema, item_ids)
        pq.write_table(everyone, target / USERS_FILE, compression="zstd")
    n = settings.tuning_queries
    others = 0 if settings.engine == "exact" else _OTHER_USERS
    records = users.records(users.sample(_PROBES + 2 * n + others, _SEED, users.with_history), schema, item_ids)
    probes, rest = records[:_PROBES], records[_PROBES : _PROBES + 2 * n]
    if len(rest) < _FEWEST_APART:
        rest = [*records, *records]
    half = len(rest) // 2
    parts = (probes, rest[:half], rest[half:], records[_PROBES + 2 * n :])
    tower = (sources.model.dir / QUERY_TOWER_FILE).read_bytes()
    embedder = RecordEmbedder(tower, schema, sources.vocabulary, sources.vectors)
    vectors = [embedder.vectors(records) for records in parts]
    found = ExactSearcher(sources.vectors, checked=True).search_batch(vectors[0], _PROBE_K)
    return _Users(
        tuning=Queries.of(vectors[1], sources.vectors, vectors[3] if len(vectors[3]) else None),
        check=Queries.of(vectors[2], sources.vectors),
        probes=Probes(tuple(probes), vectors[0], Neighbors(found.rows, found.scores)),
    )


def _write_popularity(
    sources: _Sources, known: UserRecords, backtest: Bundle | None, target: Path, progress: Progress
) -> dict[str, Any]:
    """Writes ``popularity.npy`` of all events before the test part; returns its half-life, and what it was chosen by.

    A night holds nothing out: it takes the half-life that its backtest chose.
    """
    events, schema, items = known.events.before(_TEST), sources.schema, len(sources.vocabulary.item_ids)
    if backtest is not None and POPULARITY in backtest.manifest.facts:
        chosen = HalfLife(**backtest.manifest.facts[POPULARITY])
    elif schema.tables.events.time is None:
        chosen = HalfLife()
    else:
        chosen = chosen_half_life(events, schema.action_weights, items)
    np.save(target / POPULARITY_FILE, popularity(events, schema.action_weights, items, chosen.days))
    progress.line(f"popularity: {chosen}")
    return asdict(chosen)


def _shards_job(vectors: Path, target: Path, settings: IndexSettings, beam_args: Sequence[str]) -> ShardsJob | None:
    """The job that builds the shards; None for a single tree."""
    if settings.shards == 1:
        return None
    return ShardsJob(vectors, target / SCANN_DIR, settings.shards, settings.threads, beam_args)


def _with_searcher(tuned: Tuned, searcher: SavableSearcher, users: _Users) -> Tuned:
    """The choice with the searcher that is served in place of the one that was tuned, and what it measures."""
    if searcher is tuned.searcher:
        return tuned
    chosen, check = (
        None if before is None else measure(searcher, queries, before.tree, before.build_seconds)
        for before, queries in ((tuned.spec.chosen, users.tuning), (tuned.spec.check, users.check))
    )
    return Tuned(searcher, tuned.spec.model_copy(update={"chosen": chosen, "check": check}))


def save_searcher(tuned: Tuned, target: Path) -> None:
    """Writes ``searcher.json``, and ScaNN's assets if ScaNN is the engine."""
    (target / SEARCHER_FILE).write_text(tuned.spec.model_dump_json(indent=2))
    if tuned.spec.engine == "scann":
        (target / SCANN_DIR).mkdir(exist_ok=True)
        tuned.searcher.save(target / SCANN_DIR)


def _measured_by(sources: _Sources, backtest: Bundle) -> dict[str, Any]:
    """Which of the two models a figure is of, by kind of figure."""
    inner = {"bundle": BACKTEST_DIR, "model": backtest.manifest.inputs["model"]}
    return {
        "held-out events": inner | {WINDOW_FACT: backtest.manifest.facts.get(WINDOW_FACT)},
        "everything else": {"bundle": ".", "model": sources.model.manifest.fingerprint, **sources.window},
    }


def facts_of(sources: _Sources, spec: SearcherSpec) -> dict[str, Any]:
    """The bundle's facts for the manifest."""
    measured, features = spec.measured, sources.features.manifest.facts
    learned = sources.model.manifest.facts
    return {
        **sources.window,
        **{name: learned[name] for name in (TOWERS_FACT, TOWERS_WHY_FACT, LEARNED_FACT) if name in learned},
        **vector_statistics(sources.vectors),
        "space": sources.towers["space"],
        "engine": spec.engine,
        "ann_recall_at_100": None if measured is None else measured.ann_recall_at_100,
        "p50_us": None if measured is None else measured.p50_us,
        "p99_us": None if measured is None else measured.p99_us,
        "searcher": spec.model_dump(mode="json"),
        **({} if spec.why_exact is None else {EXACT_WHY_FACT: spec.why_exact}),
        "as_of_us": features["as_of_us"],
        "delta_sequence": features.get("delta_sequence", 0),
    }
