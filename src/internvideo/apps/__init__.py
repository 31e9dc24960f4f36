"""Applications of trained models: the demo, questions, classification, streams, person detection, weight averaging."""
