"""Tables and pictures of a page, and the templates that show them. A page is one file and loads nothing."""

from __future__ import annotations

import base64
import functools
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True)
class Picture:
    """A PNG with its title and caption."""

    title: str
    png: bytes
    caption: str

    @property
    def base64(self) -> str:
        """The PNG as text, for the page."""
        return base64.b64encode(self.png).decode()

    def _repr_png_(self) -> bytes:
        """How a notebook shows it."""
        return self.png


@dataclass(frozen=True)
class Table:
    """A table with a header. own: the place of the highlighted line."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    note: str = ""
    own: int | None = None

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return render("table.html.j2", shown=self)


@functools.cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("index.evaluation.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """The template with its values; every value is escaped."""
    return _templates().get_template(template).render(**values)
