"""What is published: bundles, versions, and the changes between two nightly builds."""
