"""Search collections of videos: index, query, moments, calibrated thresholds, a server and its page."""
