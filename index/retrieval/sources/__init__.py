"""Where candidates come from besides the search, and how several sources become one answer."""
