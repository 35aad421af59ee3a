"""One module for each section of the evaluation report."""
