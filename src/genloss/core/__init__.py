"""The ground: errors, seeds, records, the store, run directories, plug-ins. It imports nothing of genloss above it."""
