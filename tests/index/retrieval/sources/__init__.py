"""Tests of the sources of an answer."""
