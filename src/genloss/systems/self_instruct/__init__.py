"""Self-Instruct (Wang et al. 2023, arXiv 2212.10560) and Alpaca (Taori et al. 2023): a model writes tasks like some."""
