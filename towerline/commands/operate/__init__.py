"""Verbs that operate what is live."""
