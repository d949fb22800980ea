"""Is Model Collapse Inevitable? (Gerstgrasser et al. 2024, arXiv 2404.01413)."""
