"""Evaluation: how good retrieval is, for whom, where recall is lost, and what it does to the marketplace."""
