"""The Self-Consuming Training Loop (Briesch, Sobania & Rothlauf 2023, arXiv 2311.16822)."""
