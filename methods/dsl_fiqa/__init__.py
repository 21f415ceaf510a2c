"""DSL-FIQA (Chen et al., CVPR 2024): perceptual face quality. Its data, its two trainings, its evaluation."""
