"""Parts of the model and what a stage does to each: a learning rate, or frozen; all of it, or
its last layers alone.
"""

from collections.abc import Iterator

from torch import nn

from m3.model import M3ForConditionalGeneration
from m3.model.anatomy import layer_stack, router_modules
from m3.training.recipe.sections import Parts, Rate

PART_PREFIXES: dict[str, tuple[str, ...]] = {
    "vision_tower": ("model.vision_tower.",),
    "connector": ("model.connector.", "model.image_newline"),
    "reducer": ("model.reducer.",),
    "budget_router": ("model.budget_router.",),
    "decoder": ("model.language_model.", "lm_head."),
}
PARTS = ("vision_tower", "connector", "reducer", "decoder", "router")
PEFT_PREFIX = "base_model.model."


def part_of(name: str, routers: tuple[str, ...]) -> str:
    """The part that a parameter belongs to; `routers` are the names of the decoder's routers.

    PEFT's names are taken too.
    """
    name = name.removeprefix(PEFT_PREFIX)
    if name.startswith(tuple(f"{router}." for router in routers)):
        return "router"
    return next(
        part_name for part_name, prefixes in PART_PREFIXES.items() if name.startswith(prefixes)
    )


def router_names(model: M3ForConditionalGeneration) -> tuple[str, ...]:
    """Names of the decoder's routers; none of a dense decoder."""
    return tuple(
        f"model.language_model.{name}" for name in router_modules(model.model.language_model)
    )


def chosen_rates(parts: Parts) -> dict[str, Rate]:
    """The rate of every part."""
    router = parts.decoder if parts.router is None else parts.router
    return {
        "vision_tower": parts.vision_tower,
        "connector": parts.connector,
        "reducer": parts.connector if parts.reducer is None else parts.reducer,
        # it is trained by a recipe of its own, from what a finished model loses at each budget
        "budget_router": "frozen",
        "decoder": parts.decoder,
        "router": router,
    }


def apply_parts(model: M3ForConditionalGeneration, parts: Parts) -> dict[str, float]:
    """Freezes what is frozen or never read; returns the learning rate of each parameter that
    trains, by name.

    Raises:
        ValueError: a part has fewer layers than are to train, or the decoder has no router.
    """
    rates, routers = chosen_rates(parts), router_names(model)
    if parts.reducer is not None and not list(model.model.reducer.parameters()):
        nesting_kind = model.config.nesting.kind
        raise ValueError(
            f"parts.reducer: the reducer {nesting_kind} has no parameters; leave it out"
        )
    if parts.router is not None and not routers:
        raise ValueError("parts.router: the decoder is dense and has none; leave it out")
    left_out = {
        *_outside_last_layers(
            model, "vision_tower", model.model.vision_tower, parts.vision_last_layers
        ),
        *_outside_last_layers(
            model, "decoder", model.model.language_model, parts.decoder_last_layers
        ),
    }
    learning_rates: dict[str, float] = {}
    for parameter_name, parameter in model.named_parameters():
        part_name = part_of(parameter_name, routers)
        # quantised: it has no gradient; adapters train in its place
        is_packed = not parameter.is_floating_point()
        rate = (
            "frozen"
            if is_packed or (parameter_name in left_out and part_name != "router")
            else rates[part_name]
        )
        if not is_packed:
            parameter.requires_grad_(rate != "frozen")
        if rate != "frozen":
            learning_rates[parameter_name] = float(rate)
    model.model.freeze_unread()
    return {
        parameter_name: rate
        for parameter_name, rate in learning_rates.items()
        if model.get_parameter(parameter_name).requires_grad
    }


def _outside_last_layers(
    model: M3ForConditionalGeneration, part: str, module: nn.Module, last: int | None
) -> Iterator[str]:
    """Names of the part's parameters that do not belong to its last layers; none when all of it
    trains.
    """
    if last is None:
        return
    layers = layer_stack(module)
    if not 1 <= last <= len(layers):
        raise ValueError(
            f"parts: the last {last} layers of {part} are to train, but it has {len(layers)}"
        )
    inside = {id(parameter) for layer in list(layers)[-last:] for parameter in layer.parameters()}
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.startswith(PART_PREFIXES[part]) and id(parameter) not in inside:
            yield parameter_name
