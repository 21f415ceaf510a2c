"""What measures the default model."""
