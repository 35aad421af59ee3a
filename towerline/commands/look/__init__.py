"""Verbs that look at what is there."""
