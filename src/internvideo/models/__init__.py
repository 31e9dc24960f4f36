"""What looks: encoders, decoders and heads, and their weights."""
