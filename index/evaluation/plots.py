"""The pictures of a report, each from the report's own JSON; no global state of matplotlib is touched.

Reads and writes nothing: takes ``report.json``'s content, gives PNG bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from index.evaluation.report import Picture

_OWN = "#0b5fa5"
# Okabe and Ito 2008: told apart by colour-blind readers too.
_OTHERS = ("#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8a6d00", "#d55e00", "#5a5a5a", "#a0a0a0", "#b5651d")
_VERDICTS = {"worse": "#d55e00", "better": "#009e73", "same": "#5a5a5a", "small": "#b8bec5", "empty": "#b8bec5"}
_DPI = 110
_Report = dict[str, Any]


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, place: int = 111) -> Axes:
    axes = figure.add_subplot(place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6eaee", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def _picture(figure: Figure, title: str, caption: str) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return Picture(title, buffer.getvalue(), caption)


def recall_curve(report: _Report) -> Picture:
    """Recall against k with intervals, beside the baselines, for all and for novel items."""
    parts = [part for part in ("all", "novel") if report["recall"].get(part)]
    figure = _figure(5.2 * len(parts), 4.2)
    for number, part in enumerate(parts):
        axes = _axes(figure, 100 + 10 * len(parts) + number + 1)
        _curve(axes, report, part, _OWN, "towerline", width=2.4)
        for color, (name, told) in zip(_OTHERS, report["baselines"].items(), strict=False):
            _curve(axes, told, part, color, name.replace("_", " "), width=1.3)
        axes.set_xscale("log")
        cuts = [int(k) for k in report["recall"][part]]
        axes.set_xticks(cuts, [str(k) for k in cuts])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("k (ads ranked for a user)")
        axes.set_ylabel("recall@k (mean over users)")
        axes.set_title(f"{part} items")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8, frameon=False
    )
    return _picture(
        figure,
        "Recall against k",
        "Bands are bootstrap intervals over users. Recall is |top k ∩ truth| / min(k, |truth|).",
    )


def _curve(axes: Axes, told: _Report, part: str, color: str, label: str, width: float) -> None:
    values = {int(k): value for k, value in told["recall"][part].items() if value is not None}
    bounds = [told["intervals"]["recall"][part][str(k)] for k in values]
    axes.plot(list(values), list(values.values()), color=color, label=label, linewidth=width, marker="o", markersize=3)
    axes.fill_between(list(values), [low for low, _ in bounds], [high for _, high in bounds], color=color, alpha=0.15)


def waterfall(report: _Report) -> Picture:
    """From a perfect answer down to what is served, stage by stage."""
    told = report["waterfall"]
    stages = told["stages"]
    figure = _figure(9.5, 4.4)
    axes = _axes(figure)
    axes.bar(0, 1.0, color="#d8dee4", width=0.7)
    level = 1.0
    for place, stage in enumerate(stages.values(), start=1):
        lost, (low, high) = stage["lost"], stage["interval"]
        axes.bar(place, -lost, bottom=level, color="#d55e00" if lost >= 0 else "#009e73", width=0.7)
        errors = [[max(lost - low, 0.0)], [max(high - lost, 0.0)]]
        axes.errorbar(place, level - lost, yerr=[errors[1], errors[0]], color="#1b1f24", capsize=3, linewidth=1)
        top = max(level, level - min(low, 0.0)) + 0.015
        axes.text(place, top, f"{-lost:+.3f}" if lost else "0", ha="center", va="bottom", fontsize=8)
        level -= lost
    axes.bar(len(stages) + 1, told["recall"], color=_OWN, width=0.7)
    axes.text(len(stages) + 1, told["recall"] + 0.015, f"{told['recall']:.3f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(stages) + 2), ["perfect", *stages, "served"], fontsize=9)
    axes.set_ylim(0, 1.08)
    axes.set_ylabel(f"recall@{told['k']}")
    return _picture(
        figure,
        "Where recall is lost",
        f"Each stage's part with its bootstrap interval; the parts sum to 1 - recall. Besides the model, most is lost "
        f"by: {told['culprit']}.",
    )


def slices(report: _Report) -> Picture:
    """Recall by slice as dots with intervals, coloured by the corrected verdict."""
    shown = [one for one in report["slices"] if one["recall"] is not None]
    figure = _figure(9.5, 1.4 + 0.21 * (len(shown) + len({(one["side"], one["name"]) for one in shown})))
    axes = _axes(figure)
    overall = report["recall"]["all"].get(str(report["waterfall"]["k"]))
    place, ticks, labels, group = 0.0, [], [], None
    for one in shown:
        if group is not None and group != (one["side"], one["name"]):
            place += 1.0
        group = (one["side"], one["name"])
        color = _VERDICTS[one["verdict"]]
        low, high = one["interval"]
        axes.plot([low, high], [place, place], color=color, linewidth=1.6)
        axes.plot(
            one["recall"],
            place,
            "o",
            color=color,
            markersize=5,
            fillstyle="none" if one["verdict"] == "small" else "full",
        )
        ticks.append(place)
        labels.append(f"{one['name']}: {one['value'][:34]}  ({one['users']:,})")
        place += 1.0
    if overall is not None:
        axes.axvline(overall, color=_OWN, linewidth=1, linestyle="--")
    axes.set_yticks(ticks, labels, fontsize=7.5)
    axes.set_ylim(place, -1.0)
    # A little room left of 0, or a dot there would be cut in half.
    axes.set_xlim(left=-0.01 * max(one["interval"][1] for one in shown))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"recall@{report['waterfall']['k']} in the slice, with its interval; (users in the slice)")
    for verdict in ("worse", "better", "same", "small"):
        axes.plot(
            [], [], "o", color=_VERDICTS[verdict], fillstyle="none" if verdict == "small" else "full", label=verdict
        )
    axes.legend(fontsize=8, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0))
    return _picture(
        figure,
        "Who is served worse",
        "Users against all other users, ads against the other ads of the same users; p-values corrected for their "
        "number (Benjamini–Hochberg). Hollow: too few users to say. Dashed: recall over everything.",
    )


def latency_frontier(report: _Report) -> Picture:
    """Searchers that the tuner measured: share of exact search's answer against the time of one search."""
    points = report["frontier"]["measured"]
    figure = _figure(6.4, 4.2)
    axes = _axes(figure)
    for kind, color in (("tree", _OWN), ("exact", "#5a5a5a")):
        chosen = [one for one in points if one["kind"] == kind]
        axes.plot(
            [one["p50_us"] for one in chosen],
            [one["ann_recall"] for one in chosen],
            "o",
            color=color,
            label=kind,
            markersize=5,
        )
    best = report["frontier"]["chosen"]
    if best is not None:
        axes.plot(
            best["p50_us"], best["ann_recall"], "o", markersize=13, fillstyle="none", color="#d55e00", label="chosen"
        )
    if report["frontier"]["target"] is not None:
        axes.axhline(report["frontier"]["target"], color="#d55e00", linewidth=1, linestyle="--", label="target")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("median time of one search (µs)")
    axes.set_ylabel("ann_recall@100 (against exact search)")
    axes.legend(fontsize=8, frameon=False)
    return _picture(figure, "Recall and latency of the index", "One query at a time in one thread, on held-out users.")


def value_frontier(report: _Report) -> Picture:
    """What weighing value costs in recall."""
    points = report["value_frontier"]["points"]
    figure = _figure(6.4, 4.2)
    axes = _axes(figure)
    values = [one["value"] for one in points]
    axes.plot(values, [one["recall"] for one in points], color=_OWN, linewidth=1.6)
    for number, one in enumerate(points):
        low, high = one["interval"]
        axes.errorbar(
            one["value"],
            one["recall"],
            yerr=[[one["recall"] - low], [high - one["recall"]]],
            fmt="o",
            color=_OWN,
            capsize=3,
            markersize=4,
        )
        # Above and below in turn: small weights lie close together.
        below = number % 2 == 1
        axes.annotate(
            f"λ {one['weight']:g}",
            (one["value"], low if below else high),
            xytext=(0, -4 if below else 4),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            fontsize=8,
        )
    axes.set_ylim(0, 1.12 * max(one["interval"][1] for one in points))
    axes.set_xlabel(f"mean {report['value_frontier']['attribute']} of the ads shown")
    axes.set_ylabel(f"recall@{report['waterfall']['k']}")
    return _picture(
        figure, "Recall and value", "Each point ranks by score + λ · log value; intervals are bootstrap over users."
    )


def lorenz(report: _Report) -> Picture:
    """How exposures fall on ads and advertisers."""
    figure = _figure(5.4, 4.8)
    axes = _axes(figure)
    axes.plot([0, 1], [0, 1], color="#b8bec5", linewidth=1, linestyle="--", label="all alike")
    styles = {
        "ads": (_OWN, "-"),
        "past_ads": (_OWN, ":"),
        "advertisers": ("#e69f00", "-"),
        "past_advertisers": ("#e69f00", ":"),
    }
    names = {
        "ads": "ads shown",
        "past_ads": "ads met before",
        "advertisers": "advertisers shown",
        "past_advertisers": "advertisers met before",
    }
    for name, points in report["lorenz"].items():
        color, line = styles[name]
        axes.plot([x for x, _ in points], [y for _, y in points], color=color, linestyle=line, label=names[name])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("ads or advertisers, least shown first")
    axes.set_ylabel("share of all exposures")
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return _picture(
        figure,
        "Who gets the exposures",
        f"Exposures are places in the top {report['health']['k']} of the evaluated users.",
    )


def embedding_map(report: _Report) -> Picture:
    """Ads in the two main directions of the embedding space, coloured by category, content gaps marked."""
    told = report["map"]
    figure = _figure(9.5, 5.6)
    axes = _axes(figure)
    points = np.array(told["points"])
    codes = np.array(told["category"])
    for code, name in enumerate(told["categories"]):
        own = points[codes == code]
        if len(own):
            color = "#d8dee4" if name == "(others)" else _OTHERS[code % len(_OTHERS)]
            axes.plot(
                own[:, 0],
                own[:, 1],
                ".",
                markersize=3.5,
                color=color,
                label=name[:28],
                zorder=1 if name == "(others)" else 2,
            )
    _gap_marks(axes, np.array(told["gaps"]).reshape(-1, 2), points)
    if told["explained"] is None:
        axes.set_xlabel("first UMAP coordinate (no unit: near means alike)")
        axes.set_ylabel("second UMAP coordinate")
    else:
        first, second = told["explained"]
        axes.set_xlabel(f"first principal component ({100 * first:.1f} % of the variance)")
        axes.set_ylabel(f"second ({100 * second:.1f} %)")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=3)
    return _picture(
        figure,
        "The embedding space",
        "A sample of the ads by the direction of their vectors; circles are the content gaps of the table, by number.",
    )


def _gap_marks(axes: Axes, gaps: np.ndarray, points: np.ndarray) -> None:
    """A circle at each gap; its number stands where no circle or number before it does, with a line to it."""
    low, high = np.concatenate([points, gaps]).min(axis=0), np.concatenate([points, gaps]).max(axis=0)
    span = np.maximum(high - low, 1e-12)
    taken = [(gap - low) / span for gap in gaps]
    turns = 2 * np.pi * np.arange(16) / 16
    for number, gap in enumerate(gaps, start=1):
        axes.plot(*gap, "o", markersize=11, fillstyle="none", color="#1b1f24", markeredgewidth=1.4, zorder=3)
        offsets = np.stack([0.045 * np.cos(turns), 0.07 * np.sin(turns)], axis=1)
        spots = (gap - low) / span + np.concatenate([offsets, 1.8 * offsets])
        inside = ((spots > -0.02) & (spots < 1.02)).all(axis=1)
        room = np.linalg.norm(spots[:, None] - np.array(taken)[None], axis=2).min(axis=1)
        best = spots[np.argmax(np.where(inside, np.minimum(room, 0.06), -1.0))]
        taken.append(best)
        axes.annotate(
            str(number),
            gap,
            xytext=low + best * span,
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold",
            zorder=4,
            arrowprops={"arrowstyle": "-", "color": "#1b1f24", "linewidth": 0.8, "shrinkA": 5, "shrinkB": 6},
            bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )


def training(report: _Report) -> Picture:
    """Loss and validation recall by epoch."""
    told = report["training"]
    figure = _figure(9.5, 3.6)
    epochs = told["epoch"]
    axes = _axes(figure, 121)
    axes.plot(epochs, _numbers(told["loss"]), color=_OWN, marker="o", markersize=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_xlim(min(epochs) - 0.2, max(epochs) + 0.2)
    axes.set_ylabel("training loss (nats)")
    axes = _axes(figure, 122)
    for color, (name, values) in zip((_OWN, *_OTHERS), told["recall"].items(), strict=False):
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
    return _picture(
        figure, "Training", "Validation recall is exact and over the whole corpus. Epoch 0 is before any training."
    )


def _numbers(values: list[float | None]) -> list[float]:
    """What was not measured leaves a gap in the line."""
    return [np.nan if value is None else value for value in values]


def comparison(told: _Report) -> Picture:
    """Differences of two versions with their intervals, relative to the first."""
    shown = [one for one in told["metrics"] if one["difference"] is not None and one["first"]]
    figure = _figure(8.6, 1.6 + 0.26 * len(shown))
    axes = _axes(figure)
    for place, one in enumerate(shown):
        color = _VERDICTS[one["verdict"]]
        low, high = (100 * bound / one["first"] for bound in one["interval"])
        axes.plot([low, high], [place, place], color=color, linewidth=1.6)
        axes.plot(100 * one["difference"] / one["first"], place, "o", color=color, markersize=5)
    axes.axvline(0, color="#1b1f24", linewidth=1)
    labels = [f"{one['metric'].replace('_', ' ')}, {one['part']} @{one['k']}" for one in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("change of the mean, percent of the first version's, with its interval")
    for verdict in ("worse", "better", "same"):
        axes.plot([], [], "o", color=_VERDICTS[verdict], label=verdict)
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0))
    return _picture(figure, "Quality, second version against the first", "Paired bootstrap over the same users.")


_PICTURES: tuple[tuple[str, Callable[[_Report], Picture]], ...] = (
    ("recall", recall_curve),
    ("waterfall", waterfall),
    ("slices", slices),
    ("frontier", latency_frontier),
    ("value_frontier", value_frontier),
    ("lorenz", lorenz),
    ("map", embedding_map),
    ("training", training),
)


# Pictures of what not every version has: a tuned tree, a value, curves of its training.
OPTIONAL = ("Recall and latency of the index", "Recall and value", "Training")


def pictures(report: _Report) -> list[Picture]:
    """Every picture that the report has the figures for."""
    return [draw(report) for section, draw in _PICTURES if report.get(section)]
