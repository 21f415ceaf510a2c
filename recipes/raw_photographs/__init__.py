"""What makes the shipped face detector, its points and the check of crops."""
