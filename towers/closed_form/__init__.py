"""Linear algebra before and after training: the start, and the fit of content to known items."""
