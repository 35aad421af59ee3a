"""What people and monitoring systems are sent about a night."""
