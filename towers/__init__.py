"""Features to a user tower and an item tower."""
