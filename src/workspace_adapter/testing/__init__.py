"""What adapter authors test with."""
