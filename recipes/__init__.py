"""What makes the shipped weights, and what measures them."""
