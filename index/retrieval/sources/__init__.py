"""Sources of candidates other than the search, and how several sources are blended into one answer."""
