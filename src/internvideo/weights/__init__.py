"""Published and converted weights: layouts, key tables, conversion, initialization, licenses."""
