"""Data simulation: a broad model writes the data of a narrow task, and a small model learns it from them (ZeroGen; Ye
et al. 2022, arXiv 2202.07922)."""
