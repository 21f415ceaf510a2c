"""Training of CR-FIQA: backbone and header, verification, and a quality head for a finished backbone."""
