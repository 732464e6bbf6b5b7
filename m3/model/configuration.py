"""M3Config: a vision encoder, a connector, a nesting and a decoder, each named by its own
configuration.
"""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from m3.model.connectors import ConnectorConfig, connector_config
from m3.model.reducers import REDUCERS, decode_options
from m3.model.vision import vision_grid, vision_inputs
from m3.nesting import Grid, ImageReader, Tiling, get_nesting, make_tiling


@dataclass(frozen=True, kw_only=True)
class NestingConfig:
    """`kind`: a row of `REDUCERS` and of `m3.nesting.NESTINGS`; `trained_scales`: the visual-token
    counts the weights were trained at; `options`: the reducer's own, which stand beside these two
    in config.json.
    """

    kind: str = "grid_pool"
    trained_scales: tuple[int, ...] | list[int] = ()
    options: Any = None

    def __post_init__(self) -> None:
        get_nesting(self.kind)
        options = decode_options(self.kind, REDUCERS[self.kind], self.options)
        object.__setattr__(self, "options", options)
        if any(type(scale) is not int for scale in self.trained_scales):
            raise ValueError(
                f"nesting.trained_scales must be whole numbers, got {list(self.trained_scales)}"
            )
        object.__setattr__(self, "trained_scales", tuple(sorted(set(self.trained_scales))))

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
else:  # transformers checks what is given against these
    SubConfig = dict | PreTrainedConfig | None
    Connector = ConnectorConfig | dict | None
    NestingChoice = NestingConfig | dict | None
    TilingChoice = Tiling | dict | None


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
            encoder's images, or a trained scale that the encoder's grid cannot reach.
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
        for scale in nesting.trained_scales:
            get_nesting(nesting.kind).count(self.grid, scale)
        self.nesting = nesting
        if not isinstance(self.tiling, Tiling):
            self.tiling = make_tiling(self.tiling or {})
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

    def to_dict(self) -> dict:
        output = super().to_dict()
        output["connector"] = asdict(self.connector)
        output["nesting"] = self.nesting.to_dict()
        output["tiling"] = self.tiling.to_dict()
        return output


def decode_nesting(value: NestingConfig | dict | None) -> NestingConfig:
    """A nesting from its entry in config.json: keys of its own, and the reducer's options."""
    if isinstance(value, NestingConfig):
        return value
    entries = dict(value or {})
    given = {name: entries.pop(name) for name in ("kind", "trained_scales") if name in entries}
    return NestingConfig(**given, options=entries)
