"""What a night would refuse, found before it begins. Reads heads and a sample of the tables; writes nothing."""
