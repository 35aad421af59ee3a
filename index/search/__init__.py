"""Vectors to rows: exact search, ScaNN trees, shards, and a value dimension."""
