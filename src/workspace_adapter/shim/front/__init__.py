"""What every request passes before it is anybody's business: a connection, who asks, how often, its body."""
