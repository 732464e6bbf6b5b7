"""Parts of the model and what a stage does to each: a learning rate, or frozen."""

from torch import nn

from m3.training.recipe import Parts

PART_PREFIXES: dict[str, tuple[str, ...]] = {
    "vision_tower": ("model.vision_tower.",),
    "connector": ("model.connector.", "model.image_newline"),
    "decoder": ("model.language_model.", "lm_head."),
}


def apply_parts(model: nn.Module, parts: Parts) -> dict[str, float]:
    """Freezes what is frozen; returns the learning rate of each prefix of parameter names that trains.

    Raises:
        ValueError: when nothing is left to train.
    """
    chosen = {"vision_tower": parts.vision_tower, "connector": parts.connector, "decoder": parts.decoder}
    rates: dict[str, float] = {}
    for part, prefixes in PART_PREFIXES.items():
        rate = chosen[part]
        for name, parameter in model.named_parameters():
            if name.startswith(prefixes):
                parameter.requires_grad_(rate != "frozen")
        if rate != "frozen":
            rates |= dict.fromkeys(prefixes, float(rate))
    if not rates:
        raise ValueError("parts: every part is frozen; give at least one of them a learning rate")
    return rates


def parameter_table(model: nn.Module) -> str:
    """Parameters of each part in millions, and how many of them train."""
    lines = ["part            parameters   trained"]
    for part, prefixes in PART_PREFIXES.items():
        own = [p for name, p in model.named_parameters() if name.startswith(prefixes)]
        total, trained = sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad)
        lines.append(f"{part:<14}  {total / 1e6:9.3f}M {trained / 1e6:9.3f}M")
    return "\n".join(lines)
