"""Training of eDifFIQA: preparation, losses, data and the loop."""
