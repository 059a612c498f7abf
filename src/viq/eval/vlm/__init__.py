"""Vision-language models, asked held-out questions and the nine benchmarks."""
