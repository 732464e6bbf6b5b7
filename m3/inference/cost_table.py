"""Cost of a prompt at each scale, as a table for the terminal.

In: a conversation, a question, scales. Out: text: each picture with its tiles and tokens, then one
line per scale. The numbers are those of m3/model/cost.py, from the configuration alone: no picture
is seen for them.
"""

from collections.abc import Sequence

from m3.inference.conversation import Conversation
from m3.inference.image_features import VisualFeatures
from m3.model.cost import CostModel
from m3.processing import M3Processor
from m3.processing.scale_policy import ScaleSetting, read_policy
from m3.text_table import align_columns


def explain_costs(conversation: Conversation, question: str, scales: Sequence[ScaleSetting]) -> str:
    """Table of tiles, tokens and FLOPs per scale. Errors as in `Conversation.ask`."""
    lines = []
    for number, visual in enumerate(conversation.pictures(), start=1):
        lines += _describe_visual(number, visual, conversation.processor, scales)
    cost_model = CostModel.from_config(conversation.model.config, conversation.model.dtype)
    table_rows: list[tuple[str, ...]] = [
        ("scale", "visual", "text", "seeing", "reading", "first token", "KV cache")
    ]
    for scale in scales:
        prompt, label = conversation.outline(question, scale), read_policy(scale).label
        cost = cost_model.prompt_cost(
            label, prompt.visual_tokens, prompt.text_tokens, prompt.tile_counts
        )
        seeing = cost.vision_flops + cost.connector_flops
        flop_cells = [
            f"{count / 1e9:.3f}" for count in (seeing, cost.prefill_flops, cost.first_token_flops)
        ]
        table_rows.append(
            (
                label,
                str(prompt.visual_tokens),
                str(prompt.text_tokens),
                *flop_cells,
                f"{cost.kv_cache_bytes / 1024:.0f} KiB",
            )
        )
    lines += align_columns(table_rows)
    lines.append(
        "(tokens of the prompt; GFLOP: seeing once per resolution, then reading the prompt; their "
        "sum)"
    )
    return "\n".join(lines)


def _describe_visual(
    number: int, visual: VisualFeatures, processor: M3Processor, scales: Sequence[ScaleSetting]
) -> list[str]:
    """Lines about a picture or video: its tiles, and its tokens at each scale."""
    tile_counts: list[int] = []
    token_counts: list[str] = []
    for scale in scales:
        budgets, tiles = visual.outline(processor, scale)
        tile_counts.append(sum(picture_tiles.number for picture_tiles in tiles))
        token_count = sum(processor.counts(budgets, tiles))
        token_counts.append(f"{read_policy(scale).label}: {token_count}")
    lines = [f"{number}. {visual.name}  {visual.description}"]
    if len(set(tile_counts)) == 1:
        lines[0] += f", {tile_counts[0]} tile{'s' * (tile_counts[0] != 1)}"
    elif tile_counts:
        labels = [read_policy(scale).label for scale in scales]
        tile_texts = [f"{label}: {n}" for label, n in zip(labels, tile_counts, strict=True)]
        lines.append(f"   tiles at scale {', '.join(tile_texts)}")
    return [*lines, f"   tokens at scale {', '.join(token_counts)}"]
