"""Erasure: users who asked to be forgotten, and what still holds a trace of them."""
