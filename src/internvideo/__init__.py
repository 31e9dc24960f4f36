"""InternVideo: general video foundation models by generative and discriminative learning."""

__version__ = "0.1.0"
