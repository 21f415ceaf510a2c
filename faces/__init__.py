"""From an image file to an aligned face and its labels."""
