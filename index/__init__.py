"""index: from towers to a published bundle, and from a bundle to candidates.

``from index import Retriever`` loads the retriever when it is first asked for; importing the package does no work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from index.retrieval.candidates import Candidates
    from index.retrieval.retriever import Retriever

__all__ = ["Candidates", "Retriever"]


def __getattr__(name: str) -> object:
    if name == "Retriever":
        from index.retrieval.retriever import Retriever

        return Retriever
    if name == "Candidates":
        from index.retrieval.candidates import Candidates

        return Candidates
    raise AttributeError(f"module 'index' has no attribute {name!r}")
