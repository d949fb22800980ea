"""Evol-Instruct (Xu et al. 2023, arXiv 2304.12244) with the rewards of WizardMath (Luo et al. 2023, arXiv
2308.09583)."""
