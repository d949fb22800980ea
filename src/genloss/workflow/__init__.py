"""Everything that talks to Hydra, DVC and MLflow."""
