"""The picture of the embedding map: ads by category, content gaps circled and numbered."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from index.evaluation.pages.drawing import OTHERS, as_picture, drawn, new_axes, new_figure
from index.evaluation.pages.rendering import Picture
from index.evaluation.reports import EvaluationReport


def embedding_map(report: EvaluationReport) -> Picture:
    """Ads along the two principal axes of the embedding space, coloured by category, with content gaps marked."""
    figure = new_figure(9.5, 5.6)
    axes = new_axes(figure)
    points = np.array(report.map.points)
    codes = np.array(report.map.category)
    for code, name in enumerate(report.map.categories):
        own = points[codes == code]
        if len(own):
            color = "#d8dee4" if name == "(others)" else OTHERS[code % len(OTHERS)]
            axes.plot(
                own[:, 0],
                own[:, 1],
                ".",
                markersize=3.5,
                color=color,
                label=drawn(name[:28]),
                zorder=1 if name == "(others)" else 2,
            )
    _gap_marks(axes, np.array(report.map.gaps).reshape(-1, 2), points)
    if report.map.explained is None:
        axes.set_xlabel("first UMAP coordinate (no unit: near means similar)")
        axes.set_ylabel("second UMAP coordinate")
    else:
        first, second = report.map.explained
        axes.set_xlabel(f"first principal component ({100 * first:.1f} % of the variance)")
        axes.set_ylabel(f"second ({100 * second:.1f} %)")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=3)
    return as_picture(
        figure,
        "The embedding space",
        "A sample of the ads by the direction of their vectors; circles are the content gaps of the table, by number.",
    )


def _gap_marks(axes: Axes, gaps: np.ndarray, points: np.ndarray) -> None:
    """A circle at each gap; its number is placed where no earlier circle or number is, with a line to it."""
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
