"""Fields of a chat request that change nothing here, with what each may hold.

In: whatever clients of OpenAI, vLLM and others send beside the fields of m3/serving/http/schema.py.
Out: nothing. A field is ignored, or it asks for what this server cannot do: then it may have its
neutral value, and any other one is refused in words.
"""

from typing import Annotated

from m3.serving.http.body.fields import Ignored, Neutral, Strict

TOOLS = "this server cannot call tools"
SAMPLING = "this server cannot sample by this: it takes temperature and top_p"
STOPPING = "this server cannot end answers by this: it takes stop and max_tokens"


class UnusedFields(Strict):
    """What a request may say without effect."""

    # ignored
    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    prompt_cache_options: Ignored = None
    moderation: Ignored = None
    cache_control: Ignored = None
    cache_salt: Ignored = None
    request_id: Ignored = None
    parallel_tool_calls: Ignored = None
    include_reasoning: Ignored = None
    spaces_between_special_tokens: Ignored = None
    # neutral values alone
    tools: Annotated[object, Neutral(TOOLS, ([],))] = None
    tool_choice: Annotated[object, Neutral(TOOLS, ("none", "auto"))] = None
    functions: Annotated[object, Neutral(TOOLS, ([],))] = None
    function_call: Annotated[object, Neutral(TOOLS, ("none", "auto"))] = None
    frequency_penalty: Annotated[
        object, Neutral("this server cannot penalise repetition", (0,))
    ] = None
    presence_penalty: Annotated[object, Neutral("this server cannot penalise repetition", (0,))] = (
        None
    )
    repetition_penalty: Annotated[
        object, Neutral("this server cannot penalise repetition", (1,))
    ] = None
    length_penalty: Annotated[object, Neutral("this server cannot search with beams", (1, 0))] = (
        None
    )
    use_beam_search: Annotated[
        object, Neutral("this server cannot search with beams", (False,))
    ] = None
    best_of: Annotated[object, Neutral("this server cannot choose among several answers", (1,))] = (
        None
    )
    logit_bias: Annotated[object, Neutral("this server cannot change single logits", ({},))] = None
    top_k: Annotated[object, Neutral(SAMPLING, (-1, 0))] = None
    min_p: Annotated[object, Neutral(SAMPLING, (0,))] = None
    min_tokens: Annotated[object, Neutral(STOPPING, (0,))] = None
    stop_token_ids: Annotated[object, Neutral(STOPPING, ([],))] = None
    ignore_eos: Annotated[object, Neutral(STOPPING, (False,))] = None
    include_stop_str_in_output: Annotated[
        object, Neutral("this server cannot show the stop text", (False,))
    ] = None
    bad_words: Annotated[object, Neutral("this server cannot forbid words", ([],))] = None
    skip_special_tokens: Annotated[
        object, Neutral("this server cannot show special tokens", (True,))
    ] = None
    echo: Annotated[object, Neutral("this server cannot repeat the prompt", (False,))] = None
    chat_template: Annotated[
        object, Neutral("this server uses the model's own chat template alone")
    ] = None
    chat_template_kwargs: Annotated[
        object,
        Neutral(
            "this server cannot pass arguments to the chat template",
            ({}, {"enable_thinking": False}),
        ),
    ] = None
    reasoning_effort: Annotated[
        object, Neutral("this server cannot reason before it answers", ("none",))
    ] = None
    reasoning: Annotated[object, Neutral("this server cannot reason before it answers", ({},))] = (
        None
    )
    verbosity: Annotated[
        object, Neutral("this server cannot be told how much to write", ("medium",))
    ] = None
    audio: Annotated[object, Neutral("this server cannot speak: it writes text alone")] = None
    modalities: Annotated[
        object, Neutral("this server cannot speak: it writes text alone", (["text"], []))
    ] = None
    prediction: Annotated[object, Neutral("this server cannot use a predicted answer")] = None
    web_search_options: Annotated[object, Neutral("this server cannot search the web")] = None
    priority: Annotated[object, Neutral("this server cannot prefer requests", (0,))] = None
