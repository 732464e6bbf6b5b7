"""The default chat format: ChatML, with the marks by which transformers tells the model's own words from the prompt.

    <|im_start|>user\\n<image>\\nQUESTION<|im_end|>\\n<|im_start|>assistant\\nANSWER<|im_end|>\\n

What stands between `{% generation %}` and `{% endgeneration %}`, the answer and its `<|im_end|>`, is what training
learns; the rest is prompt. No system prompt unless the conversation brings one. Content is either a string, in which
the image token stands where the image is meant (LLaVA's data), or a list of parts (transformers' messages), where each
image part is written as the image token and a newline; both spell the same prompt. Text is trimmed at both ends, so
that a stray newline around an answer cannot make training text that no generation prompt leads to.
"""

_CHATML = r"""
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

CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>")
"""What the tokenizer must hold as single tokens for this format."""


def chatml_template(image_token: str) -> str:
    """The Jinja template in which images are written as `image_token`."""
    return _CHATML.strip().replace("@IMAGE@", image_token)
