"""From a recipe to what is trained: its data, its model with initial weights, its stage."""
