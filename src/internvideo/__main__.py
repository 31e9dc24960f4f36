"""`python -m internvideo` is the command `internvideo`."""

from internvideo.cli.main import main

main()
