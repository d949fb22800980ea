"""Causal language models: tokenizer, packing, model, training, sampling, scoring."""
