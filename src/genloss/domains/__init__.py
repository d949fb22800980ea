"""Domains: one folder a world."""
