"""Users and their events as time-ordered sequences."""
