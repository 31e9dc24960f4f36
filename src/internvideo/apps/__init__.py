"""What people do with a trained model: open it, ask it, teach it classes, export it."""
