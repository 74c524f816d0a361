"""What operators' instruments are told."""
