"""Aria's chat format: ChatML with every image between two marks, and with the marks of what
training learns.

    <|im_start|>user\\n<fim_prefix><|img|><fim_suffix>QUESTION<|im_end|>\\n<|im_start|>assistant\\nANSWER<|im_end|>\\n

Messages in parts become exactly what Aria's own template writes (`tests/test_aria_processor.py` of
https://github.com/rhymes-ai/Aria); text is not trimmed. In messages that are plain strings an image
stands as `<|img|>`, with its marks or without, and a newline after it is dropped (LLaVA's data has
one): both forms spell the same prompt.
"""

from m3.processing.chat_template import CHATML

IMAGE_TOKEN = "<|img|>"
IMAGE_START, IMAGE_END = "<fim_prefix>", "<fim_suffix>"
ARIA_TOKENS = (IMAGE_TOKEN, IMAGE_START, IMAGE_END, "<|im_start|>", "<|im_end|>")
"""What the tokenizer must hold as single tokens for this format."""

_RENDER = r"""
{%- set shown = '<fim_prefix><|img|><fim_suffix>' -%}
{%- macro render(content) -%}
    {%- if content is string -%}
        {{- content | replace(shown, '<|img|>') | replace('<|img|>\n', '<|img|>') | replace('<|img|>', shown) -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'image' -%}
                {{- shown -}}
            {%- elif part.type == 'text' -%}
                {{- part.text -}}
            {%- else -%}
                {{- raise_exception('a message part has type "' ~ part.type ~ '"; expected "text" or "image"') -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
"""


def aria_template() -> str:
    """The Jinja template."""
    return _RENDER.strip() + CHATML.strip()
