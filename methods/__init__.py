"""One folder for each system, with the same file names in each."""
