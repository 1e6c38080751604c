"""The backends; each is reached by its entry point only."""
