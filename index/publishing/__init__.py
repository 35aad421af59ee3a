"""The gates, and the publication that moves CURRENT."""
