"""From towers to a published bundle, and from a bundle to candidates."""
