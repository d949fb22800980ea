"""LLM2LLM (Lee et al. 2024, arXiv 2403.15042)."""
