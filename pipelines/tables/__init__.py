"""Raw rows, read and checked."""
