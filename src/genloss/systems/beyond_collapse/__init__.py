"""Beyond Model Collapse (Feng et al. 2024, arXiv 2406.07515)."""
