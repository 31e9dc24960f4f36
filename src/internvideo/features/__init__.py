"""Models over windows of videos: vectors of collections, features for detectors, localization."""
