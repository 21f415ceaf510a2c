"""The recipe of the default model, step by step; `make weights` runs it."""
