"""Humpback (Li et al. 2024, arXiv 2308.06259): a model writes the instructions to documents, and rates which pairs
teach."""
