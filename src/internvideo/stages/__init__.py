"""How it learns: the four stages of the paper, each a model and its losses."""
