"""What comes in: video files, annotations and texts, until they are batches."""
