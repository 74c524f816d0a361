"""What an operator may say to a workspace, whether it runs or not."""
