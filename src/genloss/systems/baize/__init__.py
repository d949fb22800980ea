"""Baize (Xu et al. 2023, arXiv 2304.01196): conversations of a model with itself, and the best of several answers."""
