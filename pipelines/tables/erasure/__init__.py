"""Erasure in the tables: lists of users to forget, how they are kept, and rejects without them."""
