"""Published systems on small models: one file a study, see genloss.replicate.study."""
