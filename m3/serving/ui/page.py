"""Routes of the web page: its files, and the token grids that it draws on pictures.

In: an engine and its settings. Out: an APIRouter, for `m3 serve --ui`. All else that the page
needs it asks of OpenAI's API beside it (m3/serving/http/api.py), as any client does.
"""

import asyncio
import base64
import io
from importlib.resources import files
from string import Template
from typing import Annotated

from fastapi import APIRouter
from PIL import Image
from pydantic import BaseModel, Field
from starlette.responses import Response
from starlette.routing import Route

from m3.nesting import resolutions
from m3.processing import M3Processor, load_image
from m3.processing.images import NotAnImageError
from m3.processing.token_grid import Line, canvas, token_lines
from m3.serving.engine.engine import Engine
from m3.serving.engine.preparation import read_video
from m3.serving.engine.requests import Refused, Visual
from m3.serving.http.fetch import Fetcher
from m3.serving.http.json_route import JsonRoute
from m3.serving.http.messages import read_visual
from m3.serving.http.schema import ImagePart, Strict, VideoPart
from m3.serving.settings import Limits, Settings

FILES = {
    "/ui": ("page.html", "text/html"),
    "/ui/page.css": ("page.css", "text/css"),
    "/ui/answers.js": ("answers.js", "text/javascript"),
    "/ui/dom.js": ("dom.js", "text/javascript"),
    "/ui/page.js": ("page.js", "text/javascript"),
    "/ui/pictures.js": ("pictures.js", "text/javascript"),
    "/ui/save.js": ("save.js", "text/javascript"),
    "/ui/server.js": ("server.js", "text/javascript"),
    "/ui/token_grid.js": ("token_grid.js", "text/javascript"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
    "/ui/chart.png": ("examples/chart.png", "image/png"),
    "/ui/count.png": ("examples/count.png", "image/png"),
    "/ui/document.png": ("examples/document.png", "image/png"),
    "/ui/scene.png": ("examples/scene.png", "image/png"),
}
"""Path -> file, media type."""
GRID_PATH = "/ui/token_grid"
OPEN_PATHS = (*FILES, "/ui/")
"""Need no API key, as they hold nothing of the model or its users; the last is sent to `/ui`."""
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data: blob:; media-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""The browser loads nothing from other hosts and runs no script but the page's."""
NEW_TOKENS, FRAMES = 256, 8
"""Defaults of the page, where the server's limits allow them."""
SIDE = 480
"""Longest side of the picture that a grid is drawn on, in pixels."""


class TokenGridRequest(Strict):
    """`POST /ui/token_grid`: a picture or video as it stands in a message; `model` chooses among
    those of a fleet.
    """

    model: str | None = None
    visual: Annotated[ImagePart | VideoPart, Field(discriminator="type")]


class Grid(BaseModel):
    """Lines between the tokens of a budget on a picture of 1 x 1; `picture`: which of the
    pictures they are drawn on.
    """

    picture: int
    lines: list[Line]


class TokenGrid(BaseModel):
    """Small copies of the picture as the encoder sees it (of a video, its first frame) at each
    resolution of the ladder, as `data:` addresses, equal ones once; and the grid of every trained
    budget.
    """

    pictures: list[str]
    grids: dict[int | str, Grid]


def file_routes(limits: Limits) -> list[Route]:
    """`FILES`."""
    return [
        Route(
            path, _file_response(name, media_type, limits), methods=["GET"], include_in_schema=False
        )
        for path, (name, media_type) in FILES.items()
    ]


def page_routes(engine: Engine, settings: Settings) -> APIRouter:
    """`FILES` and `/ui/token_grid`."""
    router = APIRouter(route_class=JsonRoute)
    fetch, places = Fetcher(()), asyncio.Semaphore(settings.queue.preparers)
    router.routes.extend(file_routes(settings.limits))

    @router.post(GRID_PATH, include_in_schema=False)
    async def token_grid(body: TokenGridRequest) -> TokenGrid:
        visual = await read_visual(body.visual, settings.limits, fetch, "visual")
        async with places:
            try:
                return await asyncio.to_thread(
                    _token_grid, visual, engine.processor, settings.limits
                )
            except NotAnImageError as error:
                raise Refused(str(error), code="no_picture", param="visual") from error
            except ValueError as error:
                raise Refused(str(error), param="visual") from error

    return router


def _file_response(name: str, media_type: str, limits: Limits) -> Response:
    content = files("m3.serving.ui").joinpath(name).read_bytes()
    if name == "page.html":
        numbers = {
            "most_frames": limits.frames,
            "frames": min(FRAMES, limits.frames),
            "most_tokens": limits.new_tokens,
            "tokens": min(NEW_TOKENS, limits.new_tokens),
        }
        content = Template(content.decode()).substitute(numbers).encode()
    return Response(content, headers=HEADERS, media_type=media_type)


def _token_grid(visual: Visual, processor: M3Processor, limits: Limits) -> TokenGrid:
    picture = _first_picture(visual, limits)
    sides = resolutions(processor.ladder)
    canvases = {side: canvas(picture, processor, side) for side in sides}
    addresses = {side: _address(seen.picture) for side, seen in canvases.items()}
    pictures = list(dict.fromkeys(addresses.values()))
    grids = {
        budget.setting: Grid(
            picture=pictures.index(addresses[budget.resolution]),
            lines=token_lines(canvases[budget.resolution], processor, budget),
        )
        for budget in processor.ladder
    }
    return TokenGrid(pictures=pictures, grids=grids)


def _address(picture: Image.Image) -> str:
    """A small copy as a `data:` address."""
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _first_picture(visual: Visual, limits: Limits) -> Image.Image:
    """The still, or the first of the frames that are read of the video."""
    if visual.kind == "image":
        return load_image(visual.content, limits.pixels)
    return read_video(visual, limits).frames[0]
