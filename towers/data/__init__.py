"""Batches: histories, counts as of a moment, negatives and their sampling probabilities (NumPy)."""
