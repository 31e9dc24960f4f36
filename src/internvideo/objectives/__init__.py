"""Training objectives: losses and masks as functions of tensors."""
