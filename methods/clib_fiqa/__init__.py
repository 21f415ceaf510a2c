"""Training of CLIB-FIQA: losses, their weighting, confidence calibration, data and the loop."""
