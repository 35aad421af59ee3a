"""The features job: tables to sequences, vocabulary and encoded items and users (Beam)."""
