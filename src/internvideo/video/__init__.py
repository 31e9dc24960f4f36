"""Files and streams to frames: open, index, read, walk, live, write."""
