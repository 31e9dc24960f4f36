"""Multiple choice: which of a few sentences fits a clip."""
