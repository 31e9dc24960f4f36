"""What is wanted: losses and masks as functions of tensors alone."""
