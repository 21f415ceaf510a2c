"""What makes the shipped face detector and its points."""
