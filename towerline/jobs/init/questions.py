"""What the tables leave open: questions, each with its evidence and the answer that holds by default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Question:
    """One question. ``key`` is the TOML's key that the answer decides, ``choices`` always hold ``default``."""

    key: str
    text: str
    evidence: str
    choices: tuple[str, ...]
    default: str


# Answers a question; None leaves it open.
Answers = Callable[[Question], str | None]


@dataclass
class Questions:
    """All questions of one call. An open one takes its default and becomes a ``# check:`` comment in the TOML."""

    ask: Answers | None = None
    open: list[Question] = field(default_factory=list)

    def choose(self, question: Question) -> str:
        """The answer, or the default where there is none.

        Raises:
            ValueError: the answer is none of the choices.
        """
        answer = None if self.ask is None else self.ask(question)
        if answer is None:
            self.open.append(question)
            return question.default
        if answer not in question.choices:
            raise ValueError(f"{question.key}: expected one of {', '.join(question.choices)}, got {answer!r}")
        return answer

    def note(self, key: str, text: str, evidence: str = "") -> None:
        """A doubt that no answer here can settle, such as cells that will be rejected."""
        self.open.append(Question(key, text, evidence, (), ""))

    def checks(self, key: str) -> list[str]:
        """The comments for a key of the TOML."""
        return [" ".join(part for part in (one.text, one.evidence) if part) for one in self.open if one.key == key]
