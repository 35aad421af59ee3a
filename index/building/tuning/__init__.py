"""Finds the fastest searcher that meets the recall target."""
