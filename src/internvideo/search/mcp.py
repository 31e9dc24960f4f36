"""Offer a collection to agents: search and listing as tools of the Model Context Protocol."""

from __future__ import annotations

from typing import Annotated, Any

from mcp.server import MCPServer
from pydantic import Field

from internvideo import __version__
from internvideo.errors import InternVideoError, RecipeError
from internvideo.features.remote_files import url_or_path
from internvideo.search.calibration import parse_level
from internvideo.search.collection import Collection
from internvideo.search.finding import MAX_TOP
from internvideo.search.query import Example

INSTRUCTIONS = """Find moments in a collection of videos. Times are seconds. A moment's p_value is how often a query
that nothing fits would score as high: small is unusual. With a threshold such as "1%", an empty list of moments with
nothing_fits true means that nothing in the collection fits."""

Top = Annotated[int, Field(ge=1, le=MAX_TOP, description="Number of moments.")]
Where = Annotated[str, Field(description='Filter, such as: duration > 60 and folder ~ "beach". Empty for none.')]
Threshold = Annotated[str, Field(description="Largest p_value that fits, such as 1% or 5%. Empty for none.")]


def create_mcp_server(collection: Collection) -> MCPServer[Any]:
    """Make the MCP server of a collection."""
    server: MCPServer[Any] = MCPServer("internvideo", instructions=INSTRUCTIONS, version=__version__)

    def search(query: str, like: list[Example], top: int, where: str, threshold: str) -> dict[str, Any]:
        level = parse_level(threshold) if threshold.strip() else None
        try:
            return collection.search(query, like=like, top=top, where=where, threshold=level).to_json()
        except InternVideoError as error:
            raise ValueError(str(error)) from error

    @server.tool()
    def search_moments(query: str, top: Top = 10, where: Where = "", threshold: Threshold = "") -> dict[str, Any]:
        """Find the moments that fit a description in words."""
        return search(query, [], top, where, threshold)

    @server.tool()
    def search_like(
        video: Annotated[str, Field(description="Path of a video of the collection.")],
        time: Annotated[float, Field(ge=0, description="Seconds.")],
        query: Annotated[str, Field(description="Words that count too; empty for none.")] = "",
        top: Top = 10,
        where: Where = "",
    ) -> dict[str, Any]:
        """Find the moments that look like a time of a video of the collection."""
        path = url_or_path(video)
        if path not in {record.path for record in collection.videos}:  # no other file of this machine is opened
            raise ValueError(str(RecipeError("video", f"'{video[:200]}' is not in the collection", "list_videos")))
        return search(query, [Example(path, time)], top, where, "")

    @server.tool()
    def list_videos(
        offset: Annotated[int, Field(ge=0)] = 0, limit: Annotated[int, Field(ge=1, le=1000)] = 100
    ) -> dict[str, Any]:
        """List the videos of the collection with their durations in seconds."""
        videos = collection.videos
        rows = [{"path": video.path, "duration": video.duration} for video in videos[offset : offset + limit]]
        return {"total": len(videos), "videos": rows}

    @server.tool()
    def describe_collection() -> dict[str, Any]:
        """Describe the collection: model, number of videos and windows, labels for filters, calibration."""
        return collection.facts()

    return server


def serve_stdio(collection: Collection) -> None:
    """Serve tools on stdin and stdout until stdin ends."""
    create_mcp_server(collection).run("stdio")
