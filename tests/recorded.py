"""A ``Progress`` for tests: it keeps its lines and shows nothing."""

from __future__ import annotations

from pipelines.progress import Progress


class Recorded(Progress):
    """Lines and stages in the order they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        """Keeps it."""
        self.lines.append(text)
