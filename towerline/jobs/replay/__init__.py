"""The replay: the nightly job run through the past, and what freshness is worth."""
