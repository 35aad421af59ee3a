"""What all plots of a report share: size, grid, colours, PNG. Matplotlib's global state is not changed."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from index.evaluation.pages.rendering import Picture

OWN = "#0b5fa5"
# Okabe and Ito 2008: colour-blind readers can distinguish them.
OTHERS = ("#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8a6d00", "#d55e00", "#5a5a5a", "#a0a0a0", "#b5651d")
_DPI = 110


def new_figure(width: float, height: float) -> Figure:
    """A figure; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes(figure: Figure, place: int = 111) -> Axes:
    """Axes with a light grid, at a place of the figure in matplotlib's numbering."""
    axes = figure.add_subplot(place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6eaee", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def drawn(text: str) -> str:
    """A text of the data as a figure draws it: a dollar sign begins no formula, a leading underscore hides no label."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if text.startswith("_") else escaped


def as_picture(figure: Figure, title: str, caption: str) -> Picture:
    """The figure as PNG with title and caption."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return Picture(title, buffer.getvalue(), caption)
