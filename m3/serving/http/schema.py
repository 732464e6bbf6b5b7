"""OpenAI's chat API as typed models: what a client may send, and what it gets.

Unknown fields are refused; null is "not said" everywhere. Fields without effect are those of
m3/serving/http/body/unused_fields.py.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from m3.serving.http.body.fields import (
    LIST,
    TEXT,
    Ignored,
    Neutral,
    SamplingFields,
    Scale,
    Strict,
    Text,
    by_field,
    tag,
    text_or_list,
)
from m3.serving.http.body.log_probabilities import ChoiceLogProbabilities
from m3.serving.http.body.structured import FormFields
from m3.serving.http.body.unused_fields import TOOLS, UnusedFields


class TextPart(Strict):
    type: Literal["text"]
    text: Text
    cache_control: Ignored = None
    annotations: Ignored = None


class PlainPart(TextPart):
    """Part of a message that holds no pictures."""

    @model_validator(mode="before")
    @classmethod
    def refuse_pictures(cls, content: Any) -> Any:
        """Images and videos are told where they belong."""
        if isinstance(content, dict) and content.get("type") in VISUAL_TYPES:
            raise PydanticCustomError(
                "unable", "images and videos belong in a message whose role is user"
            )
        return content


class Address(Strict):
    url: str = Field(
        description="`data:<type>;base64,<content>`, or an address whose host this "
        "server may fetch from"
    )
    detail: Literal["auto", "low", "high", "original"] | None = Field(
        None,
        description="a budget for clients that cannot say matryoshka_vis_token_scale, which has "
        "precedence: low, the cheapest trained of a sixteenth of the largest's tokens at least; "
        "high and original, the largest trained; auto, not said",
    )
    format: Ignored = None

    @model_validator(mode="before")
    @classmethod
    def read_bare(cls, content: Any) -> Any:
        """An address alone is as good as an object that holds it."""
        return {"url": content} if isinstance(content, str) else content


class VisualPart(Strict):
    """Fields of images and videos alike."""

    matryoshka_vis_token_scale: Scale | None = Field(
        None, description="of this image or video; default: the request's"
    )
    cache_control: Ignored = None
    uuid: Ignored = None


class ImagePart(VisualPart):
    type: Literal["image_url"]
    image_url: Address


class VideoPart(VisualPart):
    type: Literal["video_url"]
    video_url: Address
    num_frames: Annotated[int, Field(ge=1)] | None = Field(
        None, description="so many frames, spread evenly; default: 8"
    )
    fps: Annotated[float, Field(gt=0)] | None = Field(None, description="so many frames per second")
    collage: bool = Field(False, description="six frames, as one picture of 3 x 2")


VISUAL_TYPES = ("image_url", "video_url", "image", "video", "input_image", "input_video")
"""Names of pictures among parts; the first two are this server's."""
UserPart = Annotated[
    Annotated[TextPart, Tag(tag("text"))]
    | Annotated[ImagePart, Tag(tag("image_url"))]
    | Annotated[VideoPart, Tag(tag("video_url"))],
    by_field("type", "text", "image_url", "video_url"),
]
PlainContent = Annotated[
    Annotated[Text, Tag(TEXT)] | Annotated[list[PlainPart], Field(min_length=1), Tag(LIST)],
    text_or_list(),
]
UserContent = Annotated[
    Annotated[Text, Tag(TEXT)] | Annotated[list[UserPart], Field(min_length=1), Tag(LIST)],
    text_or_list(),
]


class Message(Strict):
    """Fields of every message."""

    name: Ignored = None
    id: Ignored = None
    cache_control: Ignored = None
    tool_calls: Annotated[object, Neutral(TOOLS, ([],))] = None
    tool_call_id: Annotated[object, Neutral(TOOLS)] = None
    function_call: Annotated[object, Neutral(TOOLS)] = None


class SystemMessage(Message):
    role: Literal["system", "developer"]
    content: PlainContent


class UserMessage(Message):
    role: Literal["user"]
    content: UserContent


class AssistantMessage(Message):
    """An earlier answer, as clients send it back: with all fields that it came with."""

    role: Literal["assistant"]
    content: Annotated[
        Annotated[Text, Tag(TEXT)] | Annotated[list[PlainPart], Tag(LIST)], text_or_list()
    ] = ""
    refusal: Ignored = None
    annotations: Ignored = None
    reasoning: Ignored = None
    reasoning_content: Ignored = None
    reasoning_details: Ignored = None
    thinking_blocks: Ignored = None
    provider_specific_fields: Ignored = None
    parsed: Ignored = None
    audio: Annotated[object, Neutral("this server cannot hear or speak")] = None
    prefix: Annotated[
        object, Neutral("this server continues an answer by continue_final_message", (False,))
    ] = None


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="ignored")


class ProcessorArguments(Strict):
    """vLLM's `mm_processor_kwargs`."""

    matryoshka_vis_token_scale: Scale | None = Field(
        None, description="of the request, where that says none itself"
    )


ChatMessage = Annotated[
    Annotated[SystemMessage, Tag(tag("system"))]
    | Annotated[UserMessage, Tag(tag("user"))]
    | Annotated[AssistantMessage, Tag(tag("assistant"))],
    by_field("role", "user", "system", "assistant", developer="system"),
]
StopText = Annotated[str, Field(min_length=1, max_length=200)]
StopField = (
    Annotated[
        Annotated[StopText, Tag(TEXT)] | Annotated[list[StopText], Field(max_length=4), Tag(LIST)],
        text_or_list(),
    ]
    | None
)


class ChatRequest(UnusedFields, FormFields, SamplingFields):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: str = Field(
        description="the model's name, or with a budget for requests that say none: NAME@36, "
        "NAME@36@48, NAME@auto"
    )
    matryoshka_vis_token_scale: Scale | None = Field(
        None,
        description="visual tokens per picture, 36 or 36@48 (seen at 48 pixels), a schedule over "
        "frames, or a choice per picture: auto, auto:0.95 (the model's) or auto:rule (by its size); "
        "default: the largest trained",
    )
    mm_processor_kwargs: ProcessorArguments | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="more than the server's limit is read as that"
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="the older name")
    stop: StopField = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    continue_final_message: bool = Field(
        False, description="the answer goes on with the last message, an assistant's"
    )
    add_generation_prompt: bool | None = Field(
        None, description="false: the prompt ends with the last message; default: true"
    )
    n: Annotated[int, Field(ge=1)] | None = Field(None, description="answers to the prompt")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class GenerateRequest(Strict):
    """`POST /generate`: mllm-npu's payload."""

    input_text: Text
    image: str | None = Field(None, description="base64 of an image file")
    image_gen: Annotated[
        object, Neutral("this server cannot draw: it writes text alone", (False,))
    ] = None
    matryoshka_vis_token_scale: Scale | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    model: str | None = None


class PromptDetails(BaseModel):
    cached_tokens: int = 0
    audio_tokens: int = 0


class UsageReport(BaseModel):
    """OpenAI's, and how many of the prompt's tokens were visual: in all, and of each still or
    frame; and the budget that each was read at, 36 or "36@48".
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    visual_tokens: int
    visual_tokens_per_image: list[int]
    matryoshka_vis_token_scale_per_image: list[int | str]


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int = 0
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChoiceLogProbabilities | None = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: UsageReport


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int = 0
    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: ChoiceLogProbabilities | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageReport | None = None


class ModelCard(BaseModel):
    """OpenAI's, and the scales that may be asked for.

    `matryoshka_vis_token_scales`: those that the largest resolution reaches; `trained_scales`: the
    ladder of the weights, tokens (36) or tokens at a resolution ("36@48"); `automatic_scales`:
    words for a choice per picture among those, by the model's router ("auto") or by the picture's
    size ("auto:rule", where the ladder names resolutions).
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "m3"
    matryoshka_vis_token_scales: list[int]
    trained_scales: list[int | str]
    automatic_scales: list[str]
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    model: str


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReport(BaseModel):
    """OpenAI's error format."""

    error: ErrorBody
