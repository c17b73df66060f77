"""Tasks that bring exports to where they are needed."""
