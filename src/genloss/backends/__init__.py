"""Backends: who answers a prompt. The model of the run in this process (local), or a server (endpoint)."""
