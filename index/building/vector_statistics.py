"""Statistics of the item vectors, as manifests record them and gates compare them."""

from __future__ import annotations

from typing import Any

import numpy as np

from index.search.searcher import Vectors, check_vectors


def vector_statistics(vectors: Vectors) -> dict[str, Any]:
    """Counts of a matrix of vectors, and the spread of their lengths.

    Raises:
        ArtifactError: a vector holds NaN or infinity.
    """
    check_vectors(vectors, "embeddings")
    norms = np.linalg.norm(vectors, axis=1)
    return {
        "items": int(vectors.shape[0]),
        "dim": int(vectors.shape[1]),
        "zero_vectors": int((norms == 0).sum()),
        "norm_mean": float(norms.mean()),
        "norm_min": float(norms.min()),
        "norm_max": float(norms.max()),
        "norm_std": float(norms.std()),
    }
