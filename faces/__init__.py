"""Pixels: from an image file to an aligned face."""
