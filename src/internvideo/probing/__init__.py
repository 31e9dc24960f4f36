"""A classifier of your own on the features of a frozen model."""
