"""Read video files and streams: open, index, decode frames, live sources, write."""
