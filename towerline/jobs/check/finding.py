"""A finding: one thing that was looked at, and what came of it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.contracts.errors import ArtifactError, ConfigError, SchemaError, TowerlineError

Verdict = Literal["ok", "warning", "error"]
Kind = Literal["ConfigError", "SchemaError", "ArtifactError", "TowerlineError"]

_ERRORS: dict[Kind, type[TowerlineError]] = {
    "ConfigError": ConfigError,
    "SchemaError": SchemaError,
    "ArtifactError": ArtifactError,
    "TowerlineError": TowerlineError,
}


@dataclass(frozen=True)
class Finding:
    """What was found at one place.

    check: the key of the TOML, the table or the stage. verdict: ``error`` stops a night, ``warning`` does not. found:
    what was expected and found. remedy: what to do; empty where nothing is to be done. kind: the error that a night
    would raise.
    """

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""
    kind: Kind = "ConfigError"

    @classmethod
    def of(cls, check: str, error: TowerlineError) -> Finding:
        """An error that a job raises, as a finding; its message has the remedy."""
        kinds: list[Kind] = [name for name, kind in _ERRORS.items() if isinstance(error, kind)]
        return cls(check, "error", str(error), kind=kinds[0])

    def __str__(self) -> str:
        """The finding as one line: what a job would raise."""
        text = self.found if self.found.startswith(self.check) else f"{self.check}: {self.found}"
        return f"{text} {self.remedy}".rstrip()


def raise_errors(findings: Iterable[Finding]) -> None:
    """Raises the errors among the findings as one.

    Raises:
        TowerlineError: of the class of the first error; its message has a line for each.
    """
    errors = [finding for finding in findings if finding.verdict == "error"]
    if errors:
        raise _ERRORS[errors[0].kind]("\n".join(map(str, errors)))


def similar(name: str, known: Sequence[str]) -> str:
    """``Did you mean ...?`` where a known name resembles ``name``; else what is known."""
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"Did you mean {near[0]!r}?"
    folded = [other for other in known if other.casefold() == name.casefold()]
    if folded:
        return f"Did you mean {folded[0]!r}?"
    return f"There {'is' if len(known) == 1 else 'are'} {', '.join(known) or 'none'}."
