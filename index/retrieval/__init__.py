"""Candidates for a user: a query vector, the rules of the call, a search, a blend."""
