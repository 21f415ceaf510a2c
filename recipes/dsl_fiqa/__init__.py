"""What makes and measures the shipped weights of DSL-FIQA: `make dsl-fiqa`, and reports for docs/perceptual.md."""
