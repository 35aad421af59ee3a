"""Which rows may come back: filters, caps, diversity, and the plan that applies them."""
