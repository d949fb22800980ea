"""Backends: who answers a prompt. They know messages and texts, and nothing of what is asked or why."""
