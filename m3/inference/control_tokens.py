"""Text that other people wrote, as the plain characters it is: what looks like a control token in
it is none.

In: a processor, text. Out: text in which control tokens (`<|im_end|>`, `<image>`) are fenced by
transformers' marks: they can neither end a turn nor claim an image. The tokenizer must be called
with `sanitize_control_tokens=True`, which takes the fences away. Training data are read the same
way (m3/data/tokenized.py).
"""

import re

from transformers.utils.chat_template_utils import mark_control_tokens

from m3.processing.control_tokens import control_tokens

FENCED = re.compile("\U000f0000.*?\U000f0001", re.DOTALL)
"""What `mark_control_tokens` puts around a control token that is text."""


def plain(text: str, tokens: re.Pattern[str]) -> str:
    """`text` with every control token fenced."""
    return mark_control_tokens(text, tokens)


__all__ = ["FENCED", "control_tokens", "plain"]
