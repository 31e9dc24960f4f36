"""Training of any stage: settings, optimizer, schedule, checkpoints, the loop."""
