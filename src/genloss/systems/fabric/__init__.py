"""FABRIC (von Rütte et al. 2023, arXiv 2307.10159): a diffusion model that is not trained follows likes and dislikes,
since its self-attention also looks at the images that they were given to."""
