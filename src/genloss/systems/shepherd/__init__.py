"""Shepherd (Wang et al. 2023, arXiv 2308.04592): critics."""
