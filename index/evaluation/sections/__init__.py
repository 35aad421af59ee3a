"""One module per section of the evaluation report."""
