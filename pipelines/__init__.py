"""Raw tables to features: the first stage, and the contracts that all later stages share."""
