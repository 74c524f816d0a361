"""What is wrong with this container, and what to do."""
