"""The recipe of the two networks in `weights/`: see docs/default_model.md."""
