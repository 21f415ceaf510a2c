"""DifFIQA: training of its diffusion model, and scoring with it and any face recognition model."""
