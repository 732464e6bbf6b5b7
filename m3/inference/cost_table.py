"""What a prompt costs at each scale: a table for the terminal.

In: a conversation, a question, scales. Out: text: each picture with its tiles and tokens, then one
line per scale. The numbers are those of m3/model/cost.py, from the configuration alone.
"""

from collections.abc import Sequence

from m3.inference.conversation import Conversation
from m3.model.cost import CostModel
from m3.processing.frame_scales import Schedule, frame_scales


def explain(conversation: Conversation, question: str, scales: Sequence[Schedule]) -> str:
    """Raises as `Conversation.ask` does, for a scale that cannot be reached or a prompt that is
    too long.
    """
    processor = conversation.processor
    lines = []
    for number, seen in enumerate(conversation.pictures(), start=1):
        tokens = []
        for scale in scales:
            counts = processor.counts(frame_scales(scale, len(seen.tiles)), seen.tiles)
            tokens.append(f"{scale}: {sum(counts)}")
        lines.append(
            f"{number}. {seen.name}  {seen.about}, {_plural(seen.number_of_tiles, 'tile')}"
        )
        lines.append(f"   tokens at scale {', '.join(tokens)}")
    model = CostModel.from_config(conversation.model.config, conversation.model.dtype)
    tiles = sum(seen.number_of_tiles for seen in conversation.pictures())
    rows: list[tuple[str, ...]] = [
        ("scale", "visual", "text", "seeing", "reading", "first token", "KV cache")
    ]
    for scale in scales:
        prompt = conversation.outline(question, scale)
        cost = model.prompt_cost(0, prompt.visual_tokens, prompt.text_tokens, tiles)
        seeing = cost.vision_flops + cost.connector_flops
        flops = [
            f"{value / 1e9:.3f}" for value in (seeing, cost.prefill_flops, cost.first_token_flops)
        ]
        rows.append(
            (
                str(scale),
                str(prompt.visual_tokens),
                str(prompt.text_tokens),
                *flops,
                f"{cost.kv_cache_bytes / 1024:.0f} KiB",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    lines.append(
        "(tokens of the prompt; GFLOP: seeing once, whatever the scale, then reading the "
        "prompt; their sum)"
    )
    return "\n".join(lines)


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
