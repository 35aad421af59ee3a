"""The plots of a report; matplotlib's global state is not changed."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from index.evaluation.pages.drawing import OTHERS, OWN, as_picture, drawn, new_axes, new_figure
from index.evaluation.pages.map_plot import embedding_map
from index.evaluation.pages.rendering import Picture
from index.evaluation.reports import Comparison, EvaluationReport
from index.evaluation.sections.curves import Frontier, TrainingCurves, ValueFrontier
from index.evaluation.sections.part import Bounds
from index.evaluation.sections.quality import QualityPart

_VERDICTS = {"worse": "#d55e00", "better": "#009e73", "same": "#5a5a5a", "small": "#b8bec5", "empty": "#b8bec5"}


def recall_curve(report: EvaluationReport) -> Picture:
    """Recall against k with intervals, compared with the baselines, for all and for novel items."""
    parts = [part for part in ("all", "novel") if report.recall.get(part)]
    figure = new_figure(5.2 * len(parts), 4.2)
    for number, part in enumerate(parts):
        axes = new_axes(figure, 100 + 10 * len(parts) + number + 1)
        _curve(axes, report, part, OWN, "towerline", width=2.4)
        for color, (name, quality) in zip(OTHERS, report.baselines.items(), strict=False):
            _curve(axes, quality, part, color, drawn(name.replace("_", " ")), width=1.3)
        axes.set_xscale("log")
        cuts = [int(k) for k in report.recall[part]]
        axes.set_xticks(cuts, [str(k) for k in cuts])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("k (ads ranked for a user)")
        axes.set_ylabel("recall@k (mean over users)")
        axes.set_title(f"{part} items")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8, frameon=False
    )
    return as_picture(
        figure,
        "Recall against k",
        "Bands are bootstrap intervals over users. Recall is |top k ∩ truth| / min(k, |truth|).",
    )


def _curve(axes: Axes, quality: QualityPart, part: str, color: str, label: str, width: float) -> None:
    values = {int(k): value for k, value in quality.recall[part].items() if value is not None}
    bounds = [_bounds(quality.intervals["recall"][part][str(k)]) for k in values]
    axes.plot(list(values), list(values.values()), color=color, label=label, linewidth=width, marker="o", markersize=3)
    axes.fill_between(list(values), [low for low, _ in bounds], [high for _, high in bounds], color=color, alpha=0.15)


def waterfall(report: EvaluationReport) -> Picture:
    """From a perfect answer down to what is served, stage by stage."""
    recall = report.waterfall.recall
    lost_of = {stage: (loss.lost or 0.0, _bounds(loss.interval)) for stage, loss in report.waterfall.stages.items()}
    figure = new_figure(9.5, 4.4)
    axes = new_axes(figure)
    axes.bar(0, 1.0, color="#d8dee4", width=0.7)
    level = 1.0
    for place, (lost, (low, high)) in enumerate(lost_of.values(), start=1):
        axes.bar(place, -lost, bottom=level, color="#d55e00" if lost >= 0 else "#009e73", width=0.7)
        errors = [[max(lost - low, 0.0)], [max(high - lost, 0.0)]]
        axes.errorbar(place, level - lost, yerr=[errors[1], errors[0]], color="#1b1f24", capsize=3, linewidth=1)
        top = max(level, level - min(low, 0.0)) + 0.015
        axes.text(place, top, f"{-lost:+.3f}" if lost else "0", ha="center", va="bottom", fontsize=8)
        level -= lost
    axes.bar(len(lost_of) + 1, recall, color=OWN, width=0.7)
    axes.text(
        len(lost_of) + 1,
        report.waterfall.recall + 0.015,
        f"{report.waterfall.recall:.3f}",
        ha="center",
        va="bottom",
        fontsize=8,
    )
    axes.set_xticks(range(len(lost_of) + 2), ["perfect", *lost_of, "served"], fontsize=9)
    axes.set_ylim(0, 1.08)
    axes.set_ylabel(f"recall@{report.waterfall.k}")
    return as_picture(
        figure,
        "Where recall is lost",
        f"Each stage's part with its bootstrap interval; the parts sum to 1 - recall. Apart from the model, most is "
        f"lost by: {report.waterfall.culprit}.",
    )


def slices(report: EvaluationReport) -> Picture:
    """Recall by slice as dots with intervals, coloured by the corrected verdict."""
    shown = [(one, one.recall) for one in report.slices if one.recall is not None]
    figure = new_figure(9.5, 1.4 + 0.21 * (len(shown) + len({(one.side, one.name) for one, _ in shown})))
    axes = new_axes(figure)
    overall = report.recall["all"].get(str(report.waterfall.k))
    place, ticks, labels, group = 0.0, [], [], None
    for one, recall in shown:
        if group is not None and group != (one.side, one.name):
            place += 1.0
        group = (one.side, one.name)
        color = _VERDICTS[one.verdict]
        low, high = _bounds(one.interval)
        axes.plot([low, high], [place, place], color=color, linewidth=1.6)
        axes.plot(
            recall,
            place,
            "o",
            color=color,
            markersize=5,
            fillstyle="none" if one.verdict == "small" else "full",
        )
        ticks.append(place)
        labels.append(drawn(f"{one.name}: {one.value[:34]}  ({one.users:,})"))
        place += 1.0
    if overall is not None:
        axes.axvline(overall, color=OWN, linewidth=1, linestyle="--")
    axes.set_yticks(ticks, labels, fontsize=7.5)
    axes.set_ylim(place, -1.0)
    # A little room left of 0, so that a dot there is not cut in half.
    axes.set_xlim(left=-0.01 * max(_bounds(one.interval)[1] for one, _ in shown))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"recall@{report.waterfall.k} in the slice, with its interval; (users in the slice)")
    for verdict in ("worse", "better", "same", "small"):
        axes.plot(
            [], [], "o", color=_VERDICTS[verdict], fillstyle="none" if verdict == "small" else "full", label=verdict
        )
    axes.legend(fontsize=8, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0))
    return as_picture(
        figure,
        "Who is served worse",
        "Users against all other users, ads against the other ads of the same users; p-values corrected for their "
        "number (Benjamini–Hochberg). Hollow: too few users to test. Dashed: recall over everything.",
    )


def latency_frontier(frontier: Frontier) -> Picture:
    """Searchers that the tuner measured: share of exact search's answer against the time of one search."""
    points = frontier.measured
    figure = new_figure(6.4, 4.2)
    axes = new_axes(figure)
    for kind, color in (("tree", OWN), ("exact", "#5a5a5a")):
        chosen = [one for one in points if one.kind == kind]
        axes.plot(
            [one.p50_us for one in chosen],
            [one.ann_recall for one in chosen],
            "o",
            color=color,
            label=kind,
            markersize=5,
        )
    best = frontier.chosen
    if best is not None:
        axes.plot(best.p50_us, best.ann_recall, "o", markersize=13, fillstyle="none", color="#d55e00", label="served")
    if frontier.target is not None:
        axes.axhline(frontier.target, color="#d55e00", linewidth=1, linestyle="--", label="target")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("median time of one search (µs)")
    axes.set_ylabel("ann_recall@100 (against exact search)")
    axes.legend(fontsize=8, frameon=False)
    caption = "One query at a time in one thread, on held-out users; what is served on users that tuning never saw."
    if frontier.why_exact is not None:
        caption += f" {frontier.why_exact[0].upper()}{frontier.why_exact[1:]}."
    return as_picture(figure, "Recall and latency of the index", caption)


def value_frontier(frontier: ValueFrontier, k: int) -> Picture:
    """What weighting value costs in recall."""
    points = frontier.points
    figure = new_figure(6.4, 4.2)
    axes = new_axes(figure)
    values = [one.value for one in points]
    axes.plot(values, _numbers([one.recall for one in points]), color=OWN, linewidth=1.6)
    for number, one in enumerate(points):
        (low, high), recall = _bounds(one.interval), one.recall or 0.0
        axes.errorbar(
            one.value,
            recall,
            yerr=[[recall - low], [high - recall]],
            fmt="o",
            color=OWN,
            capsize=3,
            markersize=4,
        )
        # Alternately above and below: small weights are close together.
        below = number % 2 == 1
        axes.annotate(
            f"λ {one.weight:g}",
            (one.value, low if below else high),
            xytext=(0, -4 if below else 4),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            fontsize=8,
        )
    axes.set_ylim(0, 1.12 * max(_bounds(one.interval)[1] for one in points))
    axes.set_xlabel(drawn(f"mean {frontier.attribute} of the ads shown"))
    axes.set_ylabel(f"recall@{k}")
    return as_picture(
        figure, "Recall and value", "Each point ranks by score + λ · log value; intervals are bootstrap over users."
    )


def lorenz(report: EvaluationReport) -> Picture:
    """How exposures are spread over ads and advertisers."""
    figure = new_figure(5.4, 4.8)
    axes = new_axes(figure)
    axes.plot([0, 1], [0, 1], color="#b8bec5", linewidth=1, linestyle="--", label="all equal")
    styles = {
        "ads": (OWN, "-"),
        "past_ads": (OWN, ":"),
        "advertisers": ("#e69f00", "-"),
        "past_advertisers": ("#e69f00", ":"),
    }
    names = {
        "ads": "ads shown",
        "past_ads": "ads met before",
        "advertisers": "advertisers shown",
        "past_advertisers": "advertisers met before",
    }
    for name, points in report.lorenz.items():
        color, line = styles[name]
        axes.plot([x for x, _ in points], [y for _, y in points], color=color, linestyle=line, label=names[name])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("ads or advertisers, least shown first")
    axes.set_ylabel("share of all exposures")
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return as_picture(
        figure,
        "Who gets the exposures",
        f"Exposures are places in the top {report.health.k} of the evaluated users.",
    )


def training(curves: TrainingCurves) -> Picture:
    """Loss and validation recall by epoch."""
    figure = new_figure(9.5, 3.6)
    epochs = curves.epoch
    axes = new_axes(figure, 121)
    axes.plot(epochs, _numbers(curves.loss), color=OWN, marker="o", markersize=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_xlim(min(epochs) - 0.2, max(epochs) + 0.2)
    axes.set_ylabel("training loss (nats)")
    axes = new_axes(figure, 122)
    for color, (name, values) in zip((OWN, *OTHERS), curves.recall.items(), strict=False):
        axes.plot(
            epochs,
            _numbers(values),
            color=color,
            marker="o",
            markersize=3,
            label=name.replace(".", " @"),
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation recall")
    axes.set_ylim(bottom=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return as_picture(
        figure, "Training", "Validation recall is exact and over the whole corpus. Epoch 0 is before any training."
    )


def _numbers(values: list[float | None]) -> list[float]:
    """Values with NaN for those not measured, which leaves a gap in the line."""
    return [np.nan if value is None else value for value in values]


def _bounds(interval: Bounds) -> tuple[float, float]:
    """The same with NaN for missing bounds."""
    low, high = _numbers(list(interval))
    return low, high


def comparison(compared: Comparison) -> Picture:
    """Differences of two versions with their intervals, relative to the first."""
    shown = [(one, one.first, one.difference) for one in compared.metrics if one.first and one.difference is not None]
    figure = new_figure(8.6, 1.6 + 0.26 * len(shown))
    axes = new_axes(figure)
    for place, (one, first, difference) in enumerate(shown):
        color = _VERDICTS[one.verdict]
        low, high = (100 * bound / first for bound in _bounds(one.interval))
        axes.plot([low, high], [place, place], color=color, linewidth=1.6)
        axes.plot(100 * difference / first, place, "o", color=color, markersize=5)
    axes.axvline(0, color="#1b1f24", linewidth=1)
    labels = [drawn(f"{one.metric.replace('_', ' ')}, {one.part} @{one.k}") for one, _, _ in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("change of the mean, percent of the first version's, with its interval")
    for verdict in ("worse", "better", "same"):
        axes.plot([], [], "o", color=_VERDICTS[verdict], label=verdict)
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0))
    return as_picture(figure, "Quality, second version against the first", "Paired bootstrap over the same users.")


# Plots that not every version has: of a tuned tree, a value, training curves. For notebooks.
OPTIONAL = ("Recall and latency of the index", "Recall and value", "Training")


def pictures(report: EvaluationReport) -> list[Picture]:
    """Every picture that the report has the figures for, in the order of the page."""
    drawn = [recall_curve(report), waterfall(report), slices(report)]
    if report.frontier is not None:
        drawn.append(latency_frontier(report.frontier))
    if report.value_frontier is not None:
        drawn.append(value_frontier(report.value_frontier, report.waterfall.k))
    drawn += [lorenz(report), embedding_map(report)]
    if report.training is not None:
        drawn.append(training(report.training))
    return drawn
