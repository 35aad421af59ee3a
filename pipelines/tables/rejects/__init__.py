"""Which rows of a table are accepted, why the others are not, and how many may be refused."""
