"""Model Autophagy Disorder (Alemohammad et al. 2024, arXiv 2307.01850): diffusion models that train on what they drew.

Its loops are mixing presets: fully synthetic is `replace`, synthetic augmentation `synthetic_augmentation` (as its
authors ran MNIST) or `accumulate` (FFHQ), fresh data `fresh`. Its sampling bias λ is `recipe.bias` of domain=images.
What is here is the study alone."""
