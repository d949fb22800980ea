"""Published systems: one folder each, with its recipe, curators, metrics and study."""
