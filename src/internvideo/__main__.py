"""`python -m internvideo` is the command `internvideo`."""

from internvideo.cli import main

main()
