"""The sample world: a synthetic video data set with exact annotations for every task."""
