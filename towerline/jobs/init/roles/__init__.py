"""What the columns are for: ids, the events' roles, the split, features."""
