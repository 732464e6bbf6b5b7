"""The web page of `m3 serve --ui`: Gradio, in the same app and at the same port as the API, below
`UI_PATH`.

In: the app, its engine and settings. Out: the page is mounted. Questions go straight to the engine,
so all its limits hold here; what Gradio would do besides is closed in m3/serving/ui/access.py. With
an API key the page asks for it (Gradio's own login).
"""

import hmac
import io
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
from fastapi import FastAPI, Form
from fastapi.security import OAuth2PasswordRequestForm
from gradio import themes
from gradio.components import Component
from gradio.routes import App
from PIL import Image
from starlette.responses import Response
from starlette.routing import Mount

from m3.serving.engine.engine import Engine
from m3.serving.settings import Limits, Settings
from m3.serving.ui import html as ui_html
from m3.serving.ui.access import ICON_PATH, UI_PATH, Gate
from m3.serving.ui.handlers import Comparison, Desk
from m3.serving.ui.state import Talk, ladder

KEPT_SECONDS = 3600
"""How long uploaded files and what was said are kept."""
NEW_TOKENS = 256
"""Of an answer, where nothing else is chosen and the limit allows it."""
EXAMPLES = (
    ("scene.png", "What is the main colour of the image?"),
    ("count.png", "What is the number of shapes in the picture?"),
    ("chart.png", "Which bar is the tallest?"),
    ("document.png", "Which word is on the fourth line?"),
)
IN_TURN: Mapping[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE: Mapping[str, Any] = {"queue": False, **IN_TURN}
"""Of events that only move what is there."""
ALERT = '<div class="m3-alert" role="alert">${value}</div>'
LEAD = "One model at any number of visual tokens: a picture is looked at once and read at the scale that you choose."
PLACEHOLDER = "What is in the picture?"
LOGIN = "This server wants its API key, as the password. The user name may be left empty."


class Login:
    """Gradio's form.

    Both fields may be empty: FastAPI would refuse such a form with 422, of which Gradio's page says
    nothing.
    """

    def __init__(
        self, username: Annotated[str, Form()] = "", password: Annotated[str, Form()] = ""
    ) -> None:
        self.username, self.password = username or "anyone", password


def add_ui(app: FastAPI, engine: Engine, settings: Settings) -> Callable[[], None]:
    """Mounts the page. To be called before the guard is added, which then stands before it.

    Returns:
        What ends the connections that an open page keeps, once it is called.
    """
    folder = upload_folder()
    app.add_middleware(Gate, settings=settings, folder=folder)
    app.add_api_route(
        ICON_PATH,
        lambda: Response(template("icon.svg"), media_type="image/svg+xml"),
        include_in_schema=False,
    )
    key = settings.api_key

    def is_key(_: str, given: str) -> bool:
        return key is not None and hmac.compare_digest(given.strip().encode(), key.encode())

    gr.mount_gradio_app(
        app,
        page(engine, settings),
        UI_PATH,
        footer_links=[],
        run_history=False,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        auth=None if key is None else is_key,
        auth_message=LOGIN,
        allowed_paths=[],
        blocked_paths=[],
        show_error=False,
        max_file_size=max(settings.limits.image_bytes, settings.limits.video_bytes),
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=themes.Default(
            primary_hue="indigo",
            font=("system-ui", "sans-serif"),
            font_mono=("ui-monospace", "monospace"),
        ),
        css=template("ui.css"),
        head=f"<script>{template('ui.js')}</script>",
    )
    mount = app.routes[-1]
    assert isinstance(mount, Mount) and isinstance(mount.app, App)
    mount.app.dependency_overrides[OAuth2PasswordRequestForm] = Login
    return mount.app.stop_event.set


@cache
def upload_folder() -> Path:
    """One of this process alone, which nobody else can read; Gradio takes it from the
    environment.
    """
    folder = Path(tempfile.mkdtemp(prefix="m3-ui-")).resolve()
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


def template(name: str) -> str:
    return ui_html.TEMPLATES.joinpath(name).read_text("utf-8")


def page(engine: Engine, settings: Settings) -> gr.Blocks:
    """All components, and what their events do."""
    desk = Desk(engine, settings)
    title = f"M3 · {desk.name}"
    kept = (KEPT_SECONDS // 6, KEPT_SECONDS)
    blocks = gr.Blocks(title=title, analytics_enabled=False, delete_cache=kept, fill_width=True)
    with blocks, gr.Column(elem_id="m3-page"):
        gr.HTML(f"<h1>{ui_html.text(title)}</h1><p>{LEAD}</p>", elem_id="m3-head")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                shown = _pictures()
            with gr.Column(scale=3, min_width=300):
                question = gr.Textbox(
                    label="Question",
                    placeholder="What is in the picture?",
                    max_lines=6,
                    elem_id="m3-question",
                )
                scale = _scale(engine)
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", min_width=80, elem_id="m3-ask")
                    compare = gr.Button("Compare scales", min_width=130, elem_id="m3-compare")
                    stop = gr.Button("Stop", min_width=80, elem_id="m3-stop")
                message = gr.HTML(html_template=ALERT, elem_id="m3-message")
                _examples(shown[1], question)
                with gr.Accordion("More", open=False):
                    options = _options(settings.limits)
        _answers(desk, (ask, compare, stop), question, scale, message, [*shown, *options])
    blocks.queue(default_concurrency_limit=None, api_open=False)
    return blocks


def _pictures() -> tuple[gr.State, gr.Image, gr.Video]:
    """Which of the two is shown; the picture; the video."""
    kind = gr.State("image")
    with gr.Tabs():
        with gr.Tab("Picture") as still:
            picture = gr.Image(
                label="Picture",
                type="filepath",
                format="png",
                sources=["upload", "webcam", "clipboard"],
                height=300,
                buttons=["fullscreen"],
                alt_text="The picture that is asked about",
                elem_id="m3-image",
            )
        with gr.Tab("Video") as moving:
            clip = gr.Video(
                label="Video", sources=["upload", "webcam"], height=300, elem_id="m3-video"
            )
    for tab, value in ((still, "image"), (moving, "video")):
        tab.select(lambda value=value: value, None, kind, **AT_ONCE)
    return kind, picture, clip


def _options(limits: Limits) -> list[Component]:
    """Frames of a video, tokens of an answer, temperature."""
    return [
        gr.Slider(
            1,
            limits.frames,
            min(8, limits.frames),
            step=1,
            label="Frames read of a video",
            buttons=[],
        ),
        gr.Slider(
            1,
            limits.new_tokens,
            min(NEW_TOKENS, limits.new_tokens),
            step=1,
            label="Most tokens of an answer",
            buttons=[],
        ),
        gr.Slider(
            0, 2, 0, step=0.05, label="Temperature (0: always the likeliest word)", buttons=[]
        ),
    ]


def _scale(engine: Engine) -> gr.HTML:
    """Its value is the scale, as text."""
    trained, reachable = engine.processor.trained_scales, engine.processor.reachable_scales
    notches = ladder(trained, reachable)
    return gr.HTML(
        str(trained[-1]),
        html_template=ui_html.scale_slider(notches, trained, trained[-1]),
        js_on_load=template("scale.js"),
        elem_id="m3-scale",
    )


def _examples(picture: gr.Image, question: gr.Textbox) -> None:
    """Buttons, which keyboards reach."""
    gr.HTML('<p class="m3-caption">Examples</p>')
    with gr.Row(elem_id="m3-examples"):
        for name, asked in EXAMPLES:
            button = gr.Button(asked, size="sm", min_width=150, elem_classes="m3-example")
            button.click(
                lambda name=name, asked=asked: (example(name), asked),
                None,
                [picture, question],
                **IN_TURN,
            )


def example(name: str) -> Image.Image:
    """A drawing of the embedded suite (m3/data/synthetic), three times as large."""
    return Image.open(io.BytesIO(ui_html.TEMPLATES.joinpath("examples", name).read_bytes()))


def _answers(
    desk: Desk,
    buttons: tuple[gr.Button, gr.Button, gr.Button],
    question: gr.Textbox,
    scale: gr.HTML,
    message: gr.HTML,
    choices: list[Component],
) -> None:
    """The two pages of answers, and all that the buttons do."""
    ask, compare, stop = buttons
    talk, comparison = (
        gr.State(Talk(), time_to_live=KEPT_SECONDS),
        gr.State(Comparison(), time_to_live=KEPT_SECONDS),
    )
    with gr.Tabs() as answers:
        with gr.Tab("Conversation", id="talk"):
            said = gr.HTML(
                ui_html.conversation(()), max_height=520, autoscroll=True, elem_id="m3-talk"
            )
            with gr.Row():
                talk_png, talk_json = _download("conversation")
                anew = gr.Button("New conversation", size="sm", min_width=140)
        with gr.Tab("Comparison", id="comparison"):
            style = gr.HTML(elem_id="m3-style")
            cards = gr.HTML(Comparison().html(), elem_id="m3-comparison")
            with gr.Row():
                comparison_png, comparison_json = _download("comparison")
    # the page runs what one button does one after the other, in the order in which it stands here
    for events, shown in (([ask.click, question.submit], "talk"), ([compare.click], "comparison")):
        gr.on(events, lambda shown=shown: gr.Tabs(selected=shown), None, answers, **AT_ONCE)
    asking = gr.on(
        [ask.click, question.submit],
        desk.ask,
        [question, scale, talk, *choices],
        [said, question, message, talk],
        preprocess=False,  # files stay as they were uploaded; ui_desk reads them within the limits
        **IN_TURN,
    )
    comparing = compare.click(
        desk.compare,
        [question, *choices],
        [cards, style, message, comparison],
        preprocess=False,
        **IN_TURN,
    )
    stop.click(None, cancels=[asking, comparing])
    stop.click(desk.at_rest, [talk, comparison], [said, cards], **AT_ONCE)
    anew.click(None, cancels=[asking])
    anew.click(desk.new_talk, None, [said, message, talk], **AT_ONCE)
    for button, record, source in (
        (talk_png, desk.talk_picture, talk),
        (talk_json, desk.talk_facts, talk),
        (comparison_png, desk.comparison_picture, comparison),
        (comparison_json, desk.comparison_facts, comparison),
    ):
        made = gr.JSON(visible=False)
        button.click(record, source, made, **AT_ONCE).then(
            None, made, None, js="(record) => window.m3Save(record)"
        )


def _download(what: str) -> list[gr.Button]:
    return [
        gr.Button(f"Save {what} as {kind}", size="sm", min_width=140) for kind in ("PNG", "JSON")
    ]
