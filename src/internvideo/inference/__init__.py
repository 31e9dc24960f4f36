"""A trained model: load it, ask it about clips, save and export it."""
