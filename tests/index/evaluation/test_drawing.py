"""Values of the data in figures are drawn as they are, whatever matplotlib would make of them."""

from __future__ import annotations

import string
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.cbook import is_math_text

from index.evaluation.pages import plots
from index.evaluation.pages.drawing import as_picture, drawn, new_axes, new_figure
from index.evaluation.pages.map_plot import embedding_map

TEXTS = st.text(string.ascii_letters + "$\\_^{}%# 5é€", min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(TEXTS, TEXTS)
def test_any_text_is_drawn_as_text(label: str, tick: str) -> None:
    figure = new_figure(2.0, 2.0)
    axes = new_axes(figure)
    axes.plot([0, 1], label=drawn(label))
    axes.set_yticks([0], [drawn(tick)])
    axes.set_title(drawn(label))
    axes.legend()
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text().strip() for text in legend.get_texts()] == [drawn(label).strip()]
    assert not is_math_text(drawn(label))
    assert as_picture(figure, "", "").png.startswith(b"\x89PNG")


NAMES = ["$a_$", "$5 to $10", "\\$", "_hidden", "100 %"]


@pytest.mark.parametrize("name", NAMES)
def test_a_slice_and_a_category_of_any_name_are_drawn(name: str) -> None:
    one = SimpleNamespace(side="item", name=name, value=name, users=3, recall=0.2, verdict="same", interval=(0.1, 0.3))
    waterfall = SimpleNamespace(k=50)
    report = SimpleNamespace(slices=[one], recall={"all": {"50": 0.2}}, waterfall=waterfall)
    assert plots.slices(report).png.startswith(b"\x89PNG")  # type: ignore[arg-type]
    points = np.eye(2).tolist()
    shown = SimpleNamespace(points=points, category=[0, 0], categories=[name], gaps=[], explained=(0.5, 0.5))
    assert embedding_map(SimpleNamespace(map=shown)).png.startswith(b"\x89PNG")  # type: ignore[arg-type]
