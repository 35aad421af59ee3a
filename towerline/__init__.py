"""Towerline: two-tower retrieval for shopping ads."""
