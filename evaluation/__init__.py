"""The evaluation bench: from qualities, pairs and embeddings to EDC curves, tables and pictures."""
