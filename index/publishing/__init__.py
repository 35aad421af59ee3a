"""Gates that decide, and the publication that moves CURRENT."""
