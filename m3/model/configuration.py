"""M3Config: a vision encoder, a connector, a nesting and a decoder, each named by its own
configuration.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, get_type_hints

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from m3.config import decode
from m3.model.budgets import BudgetChoice, decode_choice
from m3.model.connectors import ConnectorConfig, connector_config
from m3.model.reducers import REDUCERS, decode_options
from m3.model.vision import vision_grid, vision_inputs
from m3.nesting import (
    TILINGS,
    Budget,
    Grid,
    ImageReader,
    Tiles,
    Tiling,
    get_nesting,
    make_tiling,
    read_budget,
    read_ladder,
)


@dataclass(frozen=True, kw_only=True)
class NestingConfig:
    """`kind`: a row of `REDUCERS` and of `m3.nesting.NESTINGS`; `trained_scales`: the ladder of
    budgets the weights were trained at, visual tokens (36) or tokens at a resolution ("36@48");
    `options`: the reducer's own, which stand beside these two in config.json.
    """

    kind: str = "grid_pool"
    trained_scales: tuple[int | str, ...] | list[int | str] = ()
    options: Any = None

    def __post_init__(self) -> None:
        get_nesting(str(self.kind))
        options = decode_options(self.kind, REDUCERS[self.kind], self.options)
        object.__setattr__(self, "options", options)
        try:
            ladder = read_ladder(self.trained_scales)
        except ValueError as error:
            raise ValueError(
                f"nesting.trained_scales {list(self.trained_scales)}: {error}"
            ) from error
        object.__setattr__(self, "trained_scales", tuple(budget.setting for budget in ladder))

    @property
    def ladder(self) -> tuple[Budget, ...]:
        """The trained budgets, ascending."""
        return read_ladder(self.trained_scales)

    def to_dict(self) -> dict:
        """As it stands in config.json."""
        scales = list(self.trained_scales)
        return {"kind": self.kind, "trained_scales": scales} | asdict(self.options)


# who reads a part finds what `__post_init__` made of it, whatever was given: no dict and no None
if TYPE_CHECKING:
    SubConfig = Any
    Connector = Any
    NestingChoice = Any
    TilingChoice = Any
    ChoiceEntry = Any
else:  # transformers checks what is given against these
    SubConfig = dict | PreTrainedConfig | None
    Connector = ConnectorConfig | dict | None
    NestingChoice = NestingConfig | dict | None
    TilingChoice = Tiling | dict | None
    ChoiceEntry = BudgetChoice | dict | None


@strict
class M3Config(PreTrainedConfig):
    """Composes any transformers vision encoder with any transformers causal decoder, dense or
    mixture-of-experts.

    Args:
        vision_config: configuration (or its dict with `model_type`) of the encoder: SigLIP, CLIP,
            SigLIP2, DINOv2, ...
        text_config: configuration (or dict) of the decoder: Aria text, Qwen3-MoE, Mixtral, Llama,
            Qwen3, ...
        connector: `ConnectorConfig` of a row of `m3.model.connectors.CONNECTORS`, or its dict.
        nesting: `NestingConfig` or its dict. Empty `trained_scales` means the largest scale alone.
        tiling: `Tiling`, a row of `m3.nesting.TILINGS`, or its dict: how an image becomes tiles and
            their tokens one sequence. Without it an image is one tile.
        budget_choice: `BudgetChoice` of a model whose router chooses budgets itself, or its dict;
            None of all others.
        image_token_id: the placeholder that visual tokens replace. It may lie beyond the decoder's
            vocabulary (in checkpoints whose vocabulary has no room for it): then it has no
            embedding and is never generated.
        new_token_ids: tokens of text that the decoder's vocabulary got without any pre-training
            (`m3 assemble`): their rows are trained where the decoder's tables are not
            (m3/training/setup/new_tokens.py).
        vision_feature_layer: index into the encoder's hidden states (LLaVA: -2); None is its last,
            normalised output.
        drop_class_token: whether the first feature is a class token to drop (CLIP, DINOv2: yes;
            SigLIP: no).
        router_balance_coef, router_z_coef: weights of the router losses, used when the decoder has
            experts (Aria, https://arxiv.org/abs/2410.05993: 1e-4 and 1e-5).

    Raises:
        ValueError: an unknown connector, nesting or tiling, tiles of another size than the
            encoder's images, or a trained budget that the encoder cannot see or its grid not reach.
    """

    model_type = "m3"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="aria_text"),
    }

    vision_config: SubConfig = None
    text_config: SubConfig = None
    connector: Connector = None
    nesting: NestingChoice = None
    tiling: TilingChoice = None
    budget_choice: ChoiceEntry = None
    image_token_id: int = 0
    new_token_ids: list[int] | None = None
    vision_feature_layer: int | None = None
    drop_class_token: bool = False
    router_balance_coef: float = 1e-4
    router_z_coef: float = 1e-5
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    # the base class takes unknown keys of old checkpoints here
    def __post_init__(self, **kwargs) -> None:
        super().__post_init__(**kwargs)
        if not isinstance(self.connector, ConnectorConfig):
            self.connector = connector_config(self.connector or {})
        nesting = decode_nesting(self.nesting)
        if not nesting.trained_scales:
            largest = get_nesting(nesting.kind).reachable(self.grid)[-1]
            nesting = replace(nesting, trained_scales=(largest,))
        self.nesting = nesting
        if not isinstance(self.tiling, Tiling):
            self.tiling = _tiling(self.tiling or {})
        for budget in nesting.ladder:
            get_nesting(nesting.kind).count(self.grid_at(budget.resolution), budget.tokens)
            self.tiling.largest(budget.resolution)
        self.budget_choice = decode_choice(self.budget_choice)
        side = self.tiling.tile_size
        if side is not None and (
            size := vision_inputs(self.vision_config).image_size(self.vision_config)
        ) != (side, side):
            raise ValueError(
                f"tiling.tile_size is {side}, but the encoder takes images of {size[0]} x "
                f"{size[1]} pixels"
            )

    @property
    def reader(self) -> ImageReader:
        """Nesting and tiling over the tokens of a tile."""
        return ImageReader(get_nesting(self.nesting.kind), self.tiling, self.grid)

    @property
    def grid(self) -> Grid:
        """Grid of the connector's tokens: (rows, columns), or their number."""
        return self.connector.grid(vision_grid(self.vision_config))

    def patch_grid(self, resolution: int | None = None) -> tuple[int, int]:
        """(rows, columns) of patches of a tile of an image seen at a resolution in pixels; None:
        the largest. A `ValueError` where the encoder sees no tile of that size.
        """
        side = None if resolution is None else self.tile_side(resolution)
        return vision_grid(self.vision_config, side)

    def grid_at(self, resolution: int | None) -> Grid:
        """Grid of a tile's tokens of an image seen at a resolution.

        A `ValueError` where encoder or connector see no tile of that size.
        """
        return self.connector.grid(self.patch_grid(resolution))

    def tiles(
        self, resolution: int | None = None, image_size: tuple[int, int] | None = None
    ) -> Tiles:
        """Tiles of an image of (height, width) in pixels; by default of one that has most of them."""
        tiling, grid = self.tiling, self.grid_at(resolution)
        tiles = (
            tiling.largest(resolution)
            if image_size is None
            else tiling.tiles(image_size, resolution)
        )
        if grid == self.grid:
            return replace(tiles, resolution=resolution)
        tokens = grid if isinstance(grid, int) else grid[0] * grid[1]
        return replace(tiles, tokens=tokens, resolution=resolution)

    def count(self, scale: int | str | Budget, image_size: tuple[int, int] | None = None) -> int:
        """Tokens of an image of (height, width) in pixels at a budget; by default of one that has
        most tiles. A `ValueError` where it cannot be reached.
        """
        budget = read_budget(scale)
        return self.reader.count(budget.tokens, self.tiles(budget.resolution, image_size))

    def tile_side(self, resolution: int | None) -> int:
        """Side in pixels of the tiles of an image seen at a resolution."""
        encoder_side = max(vision_inputs(self.vision_config).image_size(self.vision_config))
        return self.tiling.tile_side(resolution, encoder_side)

    def to_dict(self) -> dict:
        output = super().to_dict()
        output["connector"] = asdict(self.connector)
        output["nesting"] = self.nesting.to_dict()
        output["tiling"] = self.tiling.to_dict()
        if self.budget_choice is None:
            del output["budget_choice"]  # checkpoints without a router stay as they were
        else:
            output["budget_choice"] = self.budget_choice.to_dict()
        return output


def _tiling(settings: Mapping[str, Any]) -> Tiling:
    """A tiling from its entry in config.json, whose values are checked first: m3/nesting knows no
    files.
    """
    kind = settings.get("kind", "single")
    kinds = get_type_hints(TILINGS[kind]) if isinstance(kind, str) and kind in TILINGS else {}
    for name in settings.keys() & kinds.keys():
        decode(settings[name], kinds[name], f"tiling: {name}")
    return make_tiling(settings)


def decode_nesting(value: NestingConfig | dict | None) -> NestingConfig:
    """A nesting from its entry in config.json: keys of its own, and the reducer's options."""
    if isinstance(value, NestingConfig):
        return value
    entries = dict(value or {})
    given = {name: entries.pop(name) for name in ("kind", "trained_scales") if name in entries}
    return NestingConfig(**given, options=entries)
