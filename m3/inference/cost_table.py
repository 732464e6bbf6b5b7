"""Cost of a prompt at each scale, as a table for the terminal.

In: a conversation, a question, scales. Out: text: each picture with its tiles and tokens, then one
line per scale. The numbers are those of m3/model/cost.py, from the configuration alone.
"""

from collections.abc import Sequence

from m3.inference.conversation import Conversation
from m3.model.cost import CostModel
from m3.processing.scale_policy import ScaleSetting
from m3.text_table import align_columns


def explain_costs(conversation: Conversation, question: str, scales: Sequence[ScaleSetting]) -> str:
    """Table of tiles, tokens and FLOPs per scale. Errors as in `Conversation.ask`."""
    processor = conversation.processor
    lines = []
    for number, features in enumerate(conversation.pictures(), start=1):
        token_counts = []
        for scale in scales:
            tile_tokens = processor.counts(
                processor.policy_scales(scale, features.tiles), features.tiles
            )
            token_counts.append(f"{scale}: {sum(tile_tokens)}")
        tile_text = _count_of(features.number_of_tiles, "tile")
        lines.append(f"{number}. {features.name}  {features.description}, {tile_text}")
        lines.append(f"   tokens at scale {', '.join(token_counts)}")
    cost_model = CostModel.from_config(conversation.model.config, conversation.model.dtype)
    tile_count = sum(features.number_of_tiles for features in conversation.pictures())
    table_rows: list[tuple[str, ...]] = [
        ("scale", "visual", "text", "seeing", "reading", "first token", "KV cache")
    ]
    for scale in scales:
        prompt = conversation.outline(question, scale)
        cost = cost_model.prompt_cost(0, prompt.visual_tokens, prompt.text_tokens, tile_count)
        seeing = cost.vision_flops + cost.connector_flops
        flop_cells = [
            f"{count / 1e9:.3f}" for count in (seeing, cost.prefill_flops, cost.first_token_flops)
        ]
        table_rows.append(
            (
                str(scale),
                str(prompt.visual_tokens),
                str(prompt.text_tokens),
                *flop_cells,
                f"{cost.kv_cache_bytes / 1024:.0f} KiB",
            )
        )
    lines += align_columns(table_rows)
    lines.append(
        "(tokens of the prompt; GFLOP: seeing once, whatever the scale, then reading the "
        "prompt; their sum)"
    )
    return "\n".join(lines)


def _count_of(item_count: int, noun: str) -> str:
    return f"{item_count} {noun}{'s' * (item_count != 1)}"
