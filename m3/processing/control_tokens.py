"""Texts that are more than text: the control tokens of a processor, as one pattern.

In training, chat, sweeps and the server, what is written by others holds none: the places that read
it fence what this finds (m3/data/tokenized.py, m3/inference/control_tokens.py).
"""

import re

from m3.processing.processor import M3Processor


def control_tokens(processor: M3Processor) -> re.Pattern[str]:
    """The image token, and what the tokenizer or the chat template treats as more than text."""
    added = processor.tokenizer.added_tokens_decoder.values()
    template = str(processor.chat_template)
    known = {
        token.content
        for token in added
        if token.content.strip() and (token.special or token.content in template)
    }
    longest_first = sorted({*known, processor.image_token}, key=len, reverse=True)
    return re.compile("|".join(re.escape(token) for token in longest_first))
