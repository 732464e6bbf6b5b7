"""The chat formats, with the marks by which transformers tells the model's own words from the
prompt.

ChatML, the default:

    <|im_start|>user\\n<image>\\nQUESTION<|im_end|>\\n<|im_start|>assistant\\nANSWER<|im_end|>\\n

What stands between `{% generation %}` and `{% endgeneration %}`, the answer and its `<|im_end|>`,
is what training learns; the rest is prompt. No system prompt unless the conversation brings one.
Content is either a string, in which the image token stands where the image is meant (LLaVA's data),
or a list of parts (transformers' messages), where each image part is written as the image token and
a newline; both spell the same prompt. Text is trimmed at both ends, so that a stray newline around
an answer cannot make training text that no generation prompt leads to.

Vicuna v1.1, the format of LLaVA-1.5, LLaVA-NeXT and M3 (`conv_vicuna_v1` in llava/conversation.py),
on one line:

    <s>A chat between ... questions. USER: <image>\\nQUESTION ASSISTANT: ANSWER</s>USER: QUESTION
    ASSISTANT:

The originals tokenise the text before and behind each image by itself, and Llama's tokenizer puts a
space before each of them. With a tokenizer that does so only at the start of all, the template
writes these spaces: behind `<s>`, and behind an image that text follows.
"""

IMAGE_TOKEN = "<image>"
"""The token of an image where a model does not name another."""
_RENDER = r"""
{%- macro render(content) -%}
    {%- if content is string -%}
        {{- content | trim -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' -%}
                {{- '@IMAGE@' -}}
                {%- if not loop.last -%}{{- '\n' -}}{%- endif -%}
            {%- elif part.type == 'text' -%}
                {{- part.text | trim -}}
                {%- if not loop.last -%}{{- '\n' -}}{%- endif -%}
            {%- else -%}
                {{- raise_exception('a message part has type "' ~ part.type ~ '"; expected "text" or "image"') -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
"""

CHATML = r"""
{%- for message in messages -%}
    {{- '<|im_start|>' ~ message.role ~ '\n' -}}
    {%- if message.role == 'assistant' -%}
        {%- generation -%}
        {{- render(message.content) ~ '<|im_end|>' -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- render(message.content) ~ '<|im_end|>' -}}
    {%- endif -%}
    {{- '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""
"""The messages of a conversation in turn; `render` is a macro that writes the content of one."""

CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>")
"""What the tokenizer must hold as single tokens for this format."""


def chatml_template(image_token: str) -> str:
    """The Jinja template in which images are written as `image_token`."""
    return (_RENDER.strip() + CHATML.strip()).replace("@IMAGE@", image_token)


_RENDER_MARKED = r"""
{%- set shown = '@START@@IMAGE@@END@' -%}
{%- macro render(content) -%}
    {%- if content is string -%}
        {{- content | replace(shown, '@IMAGE@') | replace('@IMAGE@', shown) -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' -%}
                {{- shown ~ '\n' -}}
            {%- elif part.type == 'text' -%}
                {{- part.text -}}
            {%- else -%}
                {{- raise_exception('a message part has type "' ~ part.type ~ '"; expected "text" or "image"') -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
"""


def marked_image_template(image_token: str, start: str, end: str) -> str:
    """ChatML with every image between two marks and a newline behind them (InternVL's format, once
    its processor has written the marks); text is not trimmed.
    """
    text = _RENDER_MARKED.strip() + CHATML.strip()
    return text.replace("@START@", start).replace("@IMAGE@", image_token).replace("@END@", end)


_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, "
    "and polite answers to the user's questions."
)
_VICUNA = r"""
{%- macro spaced(text) -%}
    {%- for piece in text.split('@IMAGE@') -%}
        {%- if not loop.first -%}{{- '@IMAGE@' ~ ('@SPACE@' if piece else '') -}}{%- endif -%}
        {{- piece -}}
    {%- endfor -%}
{%- endmacro -%}
{{- bos_token ~ '@SPACE@' -}}
{%- if messages[0].role == 'system' -%}
    {{- spaced(render(messages[0].content) ~ ' ') -}}
{%- else -%}
    {{- "@SYSTEM@ " -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {{- spaced('USER: ' ~ render(message.content) ~ ' ') -}}
    {%- elif message.role == 'assistant' -%}
        {{- 'ASSISTANT: ' -}}
        {%- generation -%}
        {{- render(message.content) ~ eos_token -}}
        {%- endgeneration -%}
    {%- elif not loop.first -%}
        {{- raise_exception('a message has role "' ~ message.role ~ '"; expected "user" or "assistant"') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'ASSISTANT:' -}}
{%- endif -%}
"""


def vicuna_template(image_token: str, space: str = "") -> str:
    """Vicuna v1.1's Jinja template; it needs a tokenizer with a beginning- and an end-of-sequence
    token.

    Args:
        space: what begins a text behind `<s>` and behind images: " " where the tokenizer leaves
            that out, else nothing.
    """
    text = _RENDER.strip() + _VICUNA.strip()
    return (
        text.replace("@SYSTEM@", _VICUNA_SYSTEM)
        .replace("@IMAGE@", image_token)
        .replace("@SPACE@", space)
    )
