"""Verbs that build a night."""
