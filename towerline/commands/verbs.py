"""What each verb of the command ``towerline`` does: it calls the function that does the work, and tells the outcome."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.contracts.errors import ConfigError
from pipelines.contracts.manifest import MANIFEST_FILE
from pipelines.progress import SILENT, Progress
from towerline.commands.config import Config, load_config
from towerline.commands.terminal import table_lines

if TYPE_CHECKING:
    from index.publishing.publish import Publication
    from towers.data.training_data import Mined


@dataclass(frozen=True)
class Call:
    """One call of the command: its arguments, and what goes to Beam."""

    arguments: argparse.Namespace
    beam_args: tuple[str, ...]

    @property
    def config(self) -> Config:
        """The TOML with ``--set`` and ``--work`` applied."""
        config = load_config(self.arguments.config, self.arguments.set, self.arguments.work)
        if self.arguments.registry is None:
            return config
        paths = config.paths.model_copy(update={"registry": self.arguments.registry})
        return config.model_copy(update={"paths": paths})

    @functools.cached_property
    def progress(self) -> Progress:
        """Shows progress on the error stream, which leaves the output to the result; silent where that is asked."""
        return SILENT if self.arguments.quiet or self.arguments.json else Progress(sys.stderr)


@dataclass(frozen=True)
class Answer:
    """What a verb has to say: lines for a person, an object for a machine, the path it wrote, the exit code."""

    lines: Sequence[str] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    written: Path | None = None
    exit_code: int = 0


def stage(call: Call, name: str, run: Callable[[Config, Path], object]) -> Answer:
    """Runs one stage into its place below the run's folder."""
    config = call.config
    out = config.work / name
    run(config, out)
    return Answer(facts={"stage": name}, written=out / MANIFEST_FILE)


def verb_features(call: Call) -> Answer:
    """Raw tables to features (Beam)."""
    from pipelines.features import job as features
    from towerline.commands.erasure import read_forget_list

    return stage(
        call,
        "features",
        lambda config, out: features.run(
            config.schema_only(),
            out,
            call.beam_args,
            progress=call.progress,
            previous=call.arguments.previous,
            forget=() if call.arguments.forget is None else read_forget_list(call.arguments.forget),
        ),
    )


def verb_train(call: Call) -> Answer:
    """Features to a user tower and an item tower (TensorFlow Recommenders)."""
    from towerline.commands.hard_negatives import mine
    from towers.training import job as training

    def run(config: Config, out: Path) -> object:
        features = config.work / "features"
        mined = mine(config, features, call.progress)
        return training.run(features, config.towers, out, seed=config.seed, progress=call.progress, mined=mined)

    return stage(call, "model", run)


def verb_embed(call: Call) -> Answer:
    """Model and items to item vectors (Beam)."""
    from index.building import embedding_job as embed

    return stage(
        call,
        "embeddings",
        lambda config, out: embed.run(
            config.work / "model", config.work / "features", out, call.beam_args, progress=call.progress
        ),
    )


def verb_build(call: Call) -> Answer:
    """Item vectors to a bundle, its search tuned to the recall target (ScaNN)."""
    from index.building import job as build

    if call.arguments.dry_run:
        config, size = call.config, {"items": call.arguments.items, "dim": call.arguments.dim}
        predicted = build.plan(config.work / "embeddings", config.index, **size, progress=call.progress)
        return Answer(lines=[predicted.line, "dry run: nothing was built"], facts=dataclasses.asdict(predicted))

    def run(config: Config, out: Path) -> None:
        work = config.work
        inputs = work / "embeddings", work / "model", work / "features"
        build.run(
            *inputs, config.index, out, retriever=config.retriever, beam_args=call.beam_args, progress=call.progress
        )

    return stage(call, "bundle", run)


def verb_publish(call: Call) -> Answer:
    """A bundle to the registry, through the gates; CURRENT moves last."""
    from index.publishing import publish as publishing

    config, arguments = call.config, call.arguments
    options = publishing.Options(
        dry_run=arguments.dry_run, force_reason=arguments.force, keep=config.refresh.keep_versions
    )
    work = config.work
    done = publishing.run(
        work / "bundle", work / "features", config.registry, config.gates, options, progress=call.progress
    )
    return publication_answer(config, done)


def verb_refresh(call: Call) -> Answer:
    """The nightly job: features to publish, gated and resumable; what is up to date is skipped."""
    from towerline.commands import refresh

    config, arguments = call.config, call.arguments
    done = refresh.run(
        config,
        beam_args=call.beam_args,
        progress=call.progress,
        force_reason=arguments.force,
        dry_run=arguments.dry_run,
    )
    state = "published" if done.published else "nothing new to publish"
    return Answer(
        lines=[f"live: {done.version} ({state})"],
        facts={"version": done.version, "published": done.published, "stages": [vars(one) for one in done.stages]},
        written=done.report,
    )


def publication_answer(config: Config, done: Publication) -> Answer:
    """What a publication came to."""
    facts = {"version": done.version, "forced": done.forced, "gates": [one.as_fact() for one in done.verdicts]}
    if done.version is None:
        return Answer(lines=["dry run: nothing was published"], facts=facts, exit_code=1 if done.failed else 0)
    manifest = Path(config.registry) / "versions" / done.version / MANIFEST_FILE
    return Answer(lines=[f"live: {done.version}"], facts=facts, written=manifest)


def verb_apply_delta(call: Call) -> Answer:
    """New, changed, removed and paused ads into the live version, between two nights."""
    from index.registry import delta_writer

    applied = delta_writer.apply(call.config.registry, call.arguments.items, progress=call.progress)
    counts = ("upserted", "removed", "paused", "resumed")
    told = ", ".join(f"{getattr(applied, name)} {name}" for name in counts)
    lines = [f"version {applied.version}, delta {applied.sequence}: {told} in {applied.seconds:.1f} s"]
    if applied.rebuild is not None:
        lines.append(f"the index should be built anew ({applied.rebuild}): run `towerline compact`")
    return Answer(lines=lines, facts=dataclasses.asdict(applied))


def verb_compact(call: Call) -> Answer:
    """Folds the deltas of the live version into a new one, its index built anew."""
    from index.building import compaction

    config = call.config
    version = compaction.run(
        config.registry, config.work / "compacted", keep=config.refresh.keep_versions, progress=call.progress
    )
    return Answer(lines=[f"live: {version}"], facts={"version": version})


def verb_candidates(call: Call) -> Answer:
    """Candidates for all users, or for a file of them, as Parquet (Beam)."""
    from towerline.commands import candidates_job

    config, arguments = call.config, call.arguments
    out = config.work / "candidates"
    candidates_job.run(
        config.registry, out, k=arguments.k, users=arguments.users, beam_args=call.beam_args, progress=call.progress
    )
    return Answer(facts={"stage": "candidates"}, written=out / MANIFEST_FILE)


def verb_evaluate(call: Call) -> Answer:
    """The live version on held-out events, beside the baselines: report.json and report.html."""
    from index import evaluation

    config, arguments = call.config, call.arguments
    path = evaluation.run(
        config.registry,
        config.work / "features",
        config.evaluation,
        config.work,
        version=arguments.version,
        progress=call.progress,
    )
    report = json.loads(path.read_text())
    return Answer(lines=recall_lines(report), facts=report, written=path.with_suffix(".html"))


def recall_lines(report: dict[str, Any]) -> list[str]:
    """Recall of the version and of each baseline, side by side."""
    kinds = [(kind, k) for kind in ("all", "novel", "repeat") for k in ("20", "100") if kind in report["recall"]]
    header = ["recall", *(f"{kind}@{k}" for kind, k in kinds)]
    rows = [["towerline", *(share(report["recall"], kind, k) for kind, k in kinds)]]
    for name, measured in report["baselines"].items():
        rows.append([name.replace("_", " "), *(share(measured["recall"], kind, k) for kind, k in kinds)])
    counts = report["counts"]
    told = f"{counts['users_evaluated']:,} users with held-out events, {counts['items']:,} items, no sampling"
    return [*table_lines(header, rows), told]


def share(recall: dict[str, Any], kind: str, k: str) -> str:
    """One cell: recall at k, or nothing where it was not measured."""
    value = recall.get(kind, {}).get(k)
    return "" if value is None else f"{value:.4f}"


def verb_doctor(call: Call) -> Answer:
    """Looks at this machine: versions, CPU, switches; says what to do."""
    del call
    from towerline.commands.doctor import examine

    findings = examine()
    rows = [(finding.verdict, finding.check, finding.found, finding.remedy) for finding in findings]
    problems = sum(finding.verdict == "problem" for finding in findings)
    return Answer(
        lines=list(table_lines(("", "check", "found", "what to do"), rows)),
        facts={"findings": [dataclasses.asdict(finding) for finding in findings], "problems": problems},
        exit_code=1 if problems else 0,
    )


def verb_compare(call: Call) -> Answer:
    """Two versions side by side: recall by slice, churn, exposure, latency; compare.json and compare.html."""
    from index.evaluation import compare
    from index.evaluation.pages.release_notes import headline
    from index.evaluation.reports import Comparison
    from index.publishing.gates import judge

    config, arguments = call.config, call.arguments
    path = compare.run(
        arguments.first,
        arguments.second,
        config.work / "features",
        config.evaluation,
        lambda after, before: judge(after, before, config.work / "features", config.gates),
        config.work,
        registry=config.registry,
        progress=call.progress,
    )
    comparison = Comparison.model_validate_json(path.read_bytes())
    return Answer(
        lines=[*comparison.verdict_lines, headline(comparison)],
        facts=comparison.as_json(),
        written=path.with_suffix(".html"),
    )


def verb_tune(call: Call) -> Answer:
    """Searches the ranges of [towers.tune] on validation recall (Optuna); resumable; writes the best as a TOML."""
    from towerline.commands.hard_negatives import mine
    from towers.training import tuning

    config = call.config
    features, out = config.work / "features", config.work / "tuned.toml"

    def mined(count: int) -> Mined | None:
        towers = config.towers.model_copy(update={"hard_negatives": count})
        asked = config.model_copy(update={"towers": towers})
        return mine(asked, features, call.progress, stage="tune")

    tuning.run(
        features,
        config.towers,
        out,
        trials=call.arguments.trials,
        seed=config.seed,
        progress=call.progress,
        mine=mined,
    )
    return Answer(lines=[out.read_text().rstrip()], facts={"stage": "tune"}, written=out)


def verb_erasure_report(call: Call) -> Answer:
    """Which artifacts and published versions still hold a trace of the users to be forgotten."""
    from towerline.commands.erasure import find_traces, read_forget_list

    config = call.config
    users = read_forget_list(call.arguments.forget)
    folders = [config.work]
    if "://" not in config.registry and not Path(config.registry).resolve().is_relative_to(config.work.resolve()):
        folders.append(Path(config.registry))
    traces = find_traces(folders, users)
    rows = [(str(one.artifact), one.file, ", ".join(one.users)) for one in traces]
    lines = list(table_lines(("artifact", "file", "users"), rows)) if rows else [f"none of {len(users)} users is left"]
    return Answer(
        lines=lines,
        facts={"users": len(users), "traces": [dataclasses.asdict(one) for one in traces]},
        exit_code=1 if traces else 0,
    )


def verb_versions(call: Call) -> Answer:
    """The registry's versions, the live one marked."""
    from index.registry.registry import Registry

    versions = Registry(call.config.registry).versions()
    rows = [("live" if one.live else "", one.name, one.created_at, f"{one.items:,}") for one in versions]
    return Answer(
        lines=list(table_lines(("", "version", "created", "items"), rows)) if rows else ["no version is published yet"],
        facts={"versions": [dataclasses.asdict(one) for one in versions]},
    )


def verb_rollback(call: Call) -> Answer:
    """Makes an older version live again."""
    from index.publishing import publish as publishing

    version = publishing.rollback(call.config.registry, call.arguments.version)
    return Answer(lines=[f"live: {version}"], facts={"version": version})


def verb_retrieve(call: Call) -> Answer:
    """Candidates for one user, on the terminal."""
    from index import Retriever

    arguments = call.arguments
    retriever = Retriever.open(call.config.registry, version=arguments.version)
    rules = {
        "where": arguments.where,
        "exclude": [typed(item_id) for item_id in arguments.exclude],
        "max_per": dict(arguments.max_per) or None,
        "value_weight": arguments.value_weight,
        "diversity": arguments.diversity,
    }
    if arguments.record is not None:
        candidates = retriever.retrieve(read_record(arguments.record), arguments.k, **rules)
    else:
        candidates = retriever.retrieve_by_id(arguments.user, arguments.k, **rules)
    items = retriever.describe(candidates).to_pylist()
    found = zip(
        candidates.item_ids.tolist(), candidates.scores.tolist(), candidates.sources.tolist(), items, strict=True
    )
    facts = [
        {"rank": rank, "score": score, "source": source, **item, "item_id": item_id}
        for rank, (item_id, score, source, item) in enumerate(found, start=1)
    ]
    start = {None: "", "profile": ", cold start from the profile", "popularity": ", cold start from popularity"}
    plan = candidates.plan
    return Answer(
        lines=[
            *candidate_lines(facts),
            f"version {candidates.version}, plan {plan.method}, {len(candidates)} of {arguments.k}"
            + start[candidates.cold_start],
        ],
        facts={
            "version": candidates.version,
            "plan": dataclasses.asdict(plan),
            "fill": candidates.fill,
            "cold_start": candidates.cold_start,
            "candidates": facts,
        },
    )


def candidate_lines(candidates: Sequence[dict[str, Any]]) -> list[str]:
    """The candidates as a table: rank, score, source, id, and what the bundle knows of the item."""
    if not candidates:
        return ["no item may be shown"]
    names = [name for name, value in candidates[0].items() if not isinstance(value, list | dict | bytes)]
    rows = [[cell(candidate[name]) for name in names] for candidate in candidates]
    return list(table_lines(names, rows))


def cell(value: object) -> str:
    """One value as a person reads it."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def typed(text: str) -> str | int:
    """An id from the command line: a whole number where it reads as one."""
    return int(text) if text.lstrip("-").isdigit() else text


def read_record(text: str) -> dict[str, Any]:
    """A raw user record: JSON, or ``@FILE`` that holds it.

    Raises:
        ConfigError: the file cannot be read, or it is no JSON object.
    """
    try:
        record = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except (OSError, ValueError) as err:
        raise ConfigError(f"--record {text!r:.80}: expected a JSON object or @FILE: {err}") from err
    if not isinstance(record, dict):
        raise ConfigError(f'--record: expected a JSON object such as {{"history": [1, 2]}}, got {text!r:.80}')
    return record
