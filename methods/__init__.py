"""One folder for each further system, and the recipe of the default model."""
