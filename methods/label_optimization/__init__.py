"""Label optimisation (IWBF 2023): clusters, mated-pair ranks, rank blending, and a regressor of the labels."""
