"""What passes between the workspace and its platform, beside the messages."""
