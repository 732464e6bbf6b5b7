"""OpenAI's chat API as typed models: what a client may send, and what it gets.

Unknown fields are refused. Fields that the official client may send and that change nothing here
are listed as ignored; those that ask for what this server cannot do take their neutral value alone.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from m3.serving.http.fields import ZERO, Scale, Strict, Text
from m3.serving.http.log_probabilities import ChoiceLogProbabilities
from m3.serving.http.structured import FormFields


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class Address(Strict):
    url: str = Field(
        description="`data:<type>;base64,<content>`, or an address whose host this "
        "server may fetch from"
    )
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="ignored; use matryoshka_vis_token_scale"
    )


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: Address
    matryoshka_vis_token_scale: Scale | None = Field(
        None, description="of this image; default: the request's"
    )


class VideoPart(Strict):
    type: Literal["video_url"]
    video_url: Address
    matryoshka_vis_token_scale: Scale | None = Field(
        None, description="of its frames; default: the request's"
    )
    num_frames: Annotated[int, Field(ge=1)] | None = Field(
        None, description="so many frames, spread evenly; default: 8"
    )
    fps: Annotated[float, Field(gt=0)] | None = Field(None, description="so many frames per second")
    collage: bool = Field(False, description="six frames, as one picture of 3 x 2")


class SystemMessage(Strict):
    role: Literal["system", "developer"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = Field(None, description="ignored")


class UserMessage(Strict):
    role: Literal["user"]
    content: (
        Text
        | Annotated[
            list[Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]],
            Field(min_length=1),
        ]
    )
    name: str | None = Field(None, description="ignored")


class AssistantMessage(Strict):
    role: Literal["assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = Field(None, description="ignored")
    refusal: None = None


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="ignored")


class ChatRequest(FormFields):
    """`POST /v1/chat/completions`."""

    messages: Annotated[
        list[
            Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]
        ],
        Field(min_length=1),
    ]
    model: str
    matryoshka_vis_token_scale: Scale | None = Field(
        None,
        description="visual tokens per picture, 36 or 36@48 (seen at 48 pixels), a schedule over "
        "frames, or a choice per picture: auto, auto:0.95 (the model's) or auto:rule (by its size); "
        "default: the largest trained",
    )
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="the older name")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="default 0: greedy"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=200)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=4)]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = Field(None, description="answers to the prompt")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    # what asks for more than this server does: the neutral value alone
    frequency_penalty: ZERO | None = None
    presence_penalty: ZERO | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    tools: None = None
    tool_choice: None = None
    parallel_tool_calls: None = None
    functions: None = None
    function_call: None = None
    logit_bias: None = None
    audio: None = None
    prediction: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None
    # what changes nothing here
    user: str | None = Field(None, description="ignored")
    metadata: dict[str, str] | None = Field(None, description="ignored")
    store: bool | None = Field(None, description="ignored")
    service_tier: str | None = Field(None, description="ignored")
    safety_identifier: str | None = Field(None, description="ignored")
    prompt_cache_key: str | None = Field(None, description="ignored")


class GenerateRequest(Strict):
    """`POST /generate`: mllm-npu's payload."""

    input_text: Text
    image: str | None = Field(None, description="base64 of an image file")
    image_gen: Literal[False] = Field(False, description="this server writes text alone")
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
