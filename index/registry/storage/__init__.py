"""Where a registry is stored: a folder or an object store, the names of versions, and copies being published."""
