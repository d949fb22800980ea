"""What is read from finished rounds: tables, figures, reports, lineage. It reads files alone."""
