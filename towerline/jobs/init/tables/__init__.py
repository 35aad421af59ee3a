"""What tables show when they are read whole: files, cells, types, and events of a sample of users."""
