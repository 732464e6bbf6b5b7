"""M3Model: pixels and ids in, the decoder's input embeddings out.

The half of the model that knows of images.

in:  `input_ids [b, l]` and `ImageInputs` (m3/model/image_inputs.py);
way: pixels -> vision tower -> connector -> `n` tokens per tile       (get_image_features, once per tile)
     -> nested to each span's scale, tiles put together, spliced      (splice)
out: `inputs_embeds [b, l, d]`, for `language_model`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from m3.model.anatomy import router_modules
from m3.model.budgets import BudgetRouter
from m3.model.budgets.router import VALUES
from m3.model.configuration import M3Config
from m3.model.connectors import CONNECTORS, Connector, ConnectorSizes, OwnParameters
from m3.model.image_inputs import ImageInputs, Span
from m3.model.packed_attention import takes_sequences
from m3.model.packed_sequences import PackedSequences
from m3.model.reducers import REDUCERS, TokenReducer
from m3.model.splice import splice
from m3.model.vision import TileGroup, patch_mask, vision_grid, vision_inputs
from m3.nesting import get_nesting, resolutions
from m3.nesting.image_reader import Reduce

NO_ROUTER = (
    "this model has no router to choose budgets: give a number of visual tokens such as 36, or train "
    "a router first (docs/auto.md)"
)


class M3PreTrainedModel(PreTrainedModel):
    """Declarations for transformers that every M3 model shares."""

    config_class = M3Config
    config: M3Config
    base_model_prefix = "model"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """transformers looks for expert layers in this file; they are the decoder's, which takes
        or ignores the choice.
        """
        return True

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # the other options pass through kwargs
        self, save_directory: str | PathLike, *, save_original_format: bool = False, **kwargs
    ) -> None:
        """As in transformers, but weights keep the names of the modules unless the decoder's
        original ones are asked for.

        transformers renames fused experts on saving (`experts.gate_up_proj` -> `experts.fc1.weight`
        for Aria) and back in `from_pretrained`, but Trainer resumes without renaming back, and
        would go on with experts it never loaded.
        """
        super().save_pretrained(save_directory, save_original_format=save_original_format, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, OwnParameters | TokenReducer | BudgetRouter):
            module.init_weights(self.config.initializer_range)
        if isinstance(module, M3Model) and module.image_newline is not None:
            # as in LLaVA-NeXT
            nn.init.normal_(module.image_newline, std=module.image_newline.numel() ** -0.5)


@dataclass
class SeenTiles(BaseModelOutputWithPooling):
    """`pooler_output [t, n, d]`: the connector's tokens of each tile; `last_hidden_state [t, p,
    d_vision]`: the features.

    `tile_tokens [t]`, on the CPU: how many of the n are tokens. Where tiles are of several sizes
    the rest is padding, as in the features.
    """

    tile_tokens: Tensor | None = None


class M3Model(M3PreTrainedModel):
    """Vision tower, connector and decoder, without the language-model head."""

    def __init__(self, config: M3Config) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.connector = build_connector(config)
        self.reducer = build_reducer(config)
        width = config.text_config.hidden_size
        self.image_newline = (
            nn.Parameter(torch.empty(width)) if config.reader.layout.has_newline else None
        )
        self.language_model = AutoModel.from_config(config.text_config)
        choice = config.budget_choice
        self.budget_router = None if choice is None else BudgetRouter(choice, width)
        self.post_init()
        self.freeze_unread()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @property
    def routers(self) -> list[nn.Module]:
        """The decoder's routers, layer by layer; none of a dense decoder."""
        return list(router_modules(self.language_model).values())

    @property
    def router_top_k(self) -> int | None:
        """Experts per token of the decoder's routers; None for a dense decoder."""
        return next((int(cast(int, router.top_k)) for router in self.routers), None)

    def get_image_features(
        self,
        pixel_values: Float[Tensor, "t c h w"],
        pixel_mask: Bool[Tensor, "t h w"] | None = None,
    ) -> SeenTiles:
        """Sees each tile once.

        `.pooler_output [t, n, d]`: the connector's tokens, before nesting.
        """
        encoder, config = vision_inputs(self.config.vision_config), self.config.vision_config
        groups = encoder.groups(config, pixel_values.to(self.dtype), pixel_mask)
        missing = self._missing_looks(groups) if self.training else []
        looks = sorted([*groups, *missing], key=lambda look: look.pixel_values.shape[-1])
        seen = {id(look): self._see(look) for look in looks}
        features, tokens = zip(*(seen[id(group)] for group in groups), strict=True)
        zeros = [0.0 * seen[id(look)][1].sum() for look in missing]
        tokens = (sum(zeros, tokens[0]), *tokens[1:])
        numbers = torch.zeros(len(pixel_values), dtype=torch.long)
        for group, group_tokens in zip(groups, tokens, strict=True):
            numbers[group.index.cpu()] = group_tokens.shape[1]
        return SeenTiles(
            last_hidden_state=_together(features, groups),
            pooler_output=_together(tokens, groups),
            tile_tokens=numbers,
        )

    def _see(
        self, group: TileGroup
    ) -> tuple[Float[Tensor, "g p d_vision"], Float[Tensor, "g n d"]]:
        """Features and tokens of tiles of one size."""
        config = self.config
        inputs = vision_inputs(config.vision_config).inputs(
            config.vision_config, group.pixel_values, group.pixel_mask
        )
        layer = config.vision_feature_layer
        tower_output = self.vision_tower(**inputs, output_hidden_states=layer is not None)
        features = (
            tower_output.last_hidden_state if layer is None else tower_output.hidden_states[layer]
        )
        if config.drop_class_token:
            features = features[:, 1:]
        features = features.to(
            next(self.connector.parameters()).dtype
        )  # a tower may be kept in fewer bits than the rest
        if group.pixel_mask is None:
            return features, self.connector(features)
        if not config.connector.uses_mask:
            raise ValueError(
                f"the connector {config.connector.kind} cannot leave padding out; "
                "give no pixel_mask"
            )
        is_image = patch_mask(config.vision_config, group.pixel_mask).flatten(1)
        return features, self.connector(features, is_image)

    def _missing_looks(self, groups: Sequence[TileGroup]) -> list[TileGroup]:
        """A black tile, of no image, at each resolution of the ladder that no group has: all ranks
        run the same modules in the same order, whatever their batches show (ZeRO-3, FSDP). The
        sizes matter: towers interpolate their positions at low resolutions alone.
        """
        ladder = resolutions(self.config.nesting.ladder)
        if len(ladder) == 1:
            return []
        sides = {self.config.tile_side(side) for side in ladder}
        missing = sorted(sides - {group.pixel_values.shape[-1] for group in groups})
        first_tile = torch.zeros(1, dtype=torch.long)
        return [
            TileGroup(
                first_tile,
                torch.zeros(1, 3, side, side, dtype=self.dtype, device=self.device),
                None,
            )
            for side in missing
        ]

    def _black_tile(self) -> TileGroup:
        """One tile of the smallest size that the model reads."""
        config = self.config
        sides = [config.tile_side(side) for side in resolutions(config.nesting.ladder)]
        smallest = config.connector.smallest_tile()
        if smallest is not None and len(sides) == 1:
            sides.append(math.isqrt(smallest) * config.vision_config.patch_size)
        encoder_size = vision_inputs(config.vision_config).image_size(config.vision_config)
        size = encoder_size if min(sides) >= max(encoder_size) else (min(sides),) * 2
        pixels = torch.zeros(1, 3, *size, dtype=self.dtype, device=self.device)
        return TileGroup(torch.zeros(1, dtype=torch.long), pixels, None)

    @torch.no_grad()
    def predict_values(
        self, view: Float[Tensor, "i n d"], prompts: Sequence[Sequence[int]]
    ) -> Float[Tensor, "i k"]:
        """The router's values of each budget, one image and its prompt's words each (ids without
        placeholders); `view`: the connector's tokens at `config.budget_choice.view`.

        Raises:
            ValueError: the model has no router.
        """
        if self.budget_router is None:
            raise ValueError(NO_ROUTER)
        longest = max(1, *(len(prompt) for prompt in prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=view.device)
        is_word = torch.zeros_like(ids, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            if prompt:
                ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=view.device)
                is_word[row, longest - len(prompt) :] = True
        outputs = self.budget_router(view, self.get_input_embeddings()(ids), is_word).float()
        return VALUES[self.config.budget_choice.target](outputs)

    def freeze_unread(self) -> None:
        """Freezes what no feature depends on: it never has a gradient, and DDP and ZeRO would
        wait for one.
        """
        for name in vision_inputs(self.config.vision_config).unread(
            self.config.vision_config, self.config.vision_feature_layer
        ):
            self.vision_tower.get_submodule(name).requires_grad_(False)

    def embed(
        self,
        input_ids: Int[Tensor, "b l"],
        inputs: ImageInputs,
        spans: list[Span],
        is_continuation: bool = False,
        written: int = 0,
    ) -> Float[Tensor, "b l d"]:
        """Embeddings of the text with every placeholder replaced by the tokens of its image at its
        scale.

        `is_continuation`: the text goes on from a cache; a placeholder in it was written by the
        model and stands for itself, as do the last `written` ones of a single row.
        """
        if inputs.pixel_values is not None and inputs.image_features is not None:
            raise ValueError("give pixel_values or image_features (seen before), not both")
        inputs_embeds = self.get_input_embeddings()(self._known_ids(input_ids))
        if inputs.pixel_values is None and inputs.image_features is None:
            placeholders = int((input_ids == self.config.image_token_id).sum())
            if placeholders and not is_continuation:
                raise ValueError(
                    f"the text has {placeholders} image placeholders, but no "
                    "pixel_values were given"
                )
            return inputs_embeds + self._every_part() if self.training else inputs_embeds
        features = inputs.image_features
        if features is None:
            assert inputs.pixel_values is not None  # without either we returned above
            seen_tiles = self.get_image_features(inputs.pixel_values, inputs.pixel_mask)
            features = seen_tiles.pooler_output
            # get_image_features always gives them
            assert features is not None and seen_tiles.tile_tokens is not None
            inputs.check_tokens(seen_tiles.tile_tokens, self.config.reader)
        token, newline = self.config.image_token_id, self.image_newline
        if written:
            input_ids = input_ids.clone()  # no span may take them for its own
            input_ids[0, torch.where(input_ids[0] == token)[0][-written:]] = -1

        def read(features: Tensor, reduce: Reduce) -> Tensor:
            return splice(
                inputs_embeds,
                input_ids,
                features,
                inputs.images(),
                spans,
                token,
                self.config.reader,
                newline,
                reduce,
            )

        return self.reducer(features, read)

    def packed_sequences(
        self,
        sequence_lengths: Int[Tensor, "b _"] | None,
        position_ids: Int[Tensor, "b l"] | None,
        row_length: int,
    ) -> PackedSequences | None:
        """Layout of the sequences for the decoder; None where its attention is told of them by
        positions and masks alone.
        """
        if sequence_lengths is None or not takes_sequences(
            self.language_model.config._attn_implementation
        ):
            return None
        if position_ids is None:
            raise ValueError(
                "sequence_lengths need position_ids that restart with every sequence, as Collator "
                "gives them"
            )
        return PackedSequences.from_lengths(sequence_lengths, row_length)

    def decode(
        self,
        inputs_embeds: Float[Tensor, "b l d"],
        position_ids: Int[Tensor, "b l"] | None,
        packed: PackedSequences | None,
        rows: Mapping[str, Any],
        recording: Mapping[str, bool],
    ) -> Any:
        """The decoder's output, in the rows of its input; sequences that are packed are read one
        behind the other.

        rows: attention_mask, past_key_values and use_cache, of rows that are not packed. recording:
            what to keep on the way.
        """
        if packed is None:
            return self.language_model(
                inputs_embeds=inputs_embeds, position_ids=position_ids, **rows, **recording
            )
        if rows["past_key_values"] is not None or rows["use_cache"]:
            raise ValueError(
                "packed rows (sequence_lengths) have no cache: their sequences would see each "
                "other in it. Leave use_cache and "
                "past_key_values out, or give each sequence a row of its own with an attention_mask"
            )
        assert position_ids is not None  # packed_sequences asks for them
        decoded = self.language_model(
            inputs_embeds=packed.take(inputs_embeds),
            position_ids=packed.take(position_ids),
            use_cache=False,
            **packed.decoder_arguments(),
            **recording,
        )
        length = inputs_embeds.shape[1]
        decoded.last_hidden_state = packed.put_back(decoded.last_hidden_state, length)
        if recording.get("output_hidden_states"):
            decoded.hidden_states = tuple(
                packed.put_back(states, length) for states in decoded.hidden_states
            )
        return decoded

    @contextmanager
    def reducing_by(self, reducer: TokenReducer) -> Iterator[None]:
        """Another reducer in place of the model's own, as long as the context lasts."""
        own, self.reducer = self.reducer, reducer
        try:
            yield
        finally:
            self.reducer = own

    def _known_ids(self, input_ids: Int[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        """A placeholder beyond the vocabulary is looked up as id 0: visual tokens take its place
        anyway.
        """
        token = self.config.image_token_id
        if token < self.config.text_config.vocab_size:
            return input_ids
        return input_ids.masked_fill(input_ids == token, 0)

    def _every_part(self) -> Tensor:
        """A zero that depends on every vision parameter, so that all ranks run the same modules
        also for batches of text alone (ZeRO-3, FSDP).
        """
        tokens = self.get_image_features(self._black_tile().pixel_values).pooler_output
        assert tokens is not None  # get_image_features always gives it
        zero = self.reducer(tokens, lambda tokens, reduce: 0.0 * tokens.sum())
        return zero if self.image_newline is None else zero + 0.0 * self.image_newline.sum()


def build_connector(config: M3Config) -> Connector:
    """The connector that `config.connector` describes, between its encoder and its decoder."""
    vision = config.vision_config
    sizes = ConnectorSizes(vision_grid(vision), vision.hidden_size, config.text_config.hidden_size)
    return CONNECTORS[config.connector.kind](config.connector, sizes)


def build_reducer(config: M3Config) -> TokenReducer:
    """The reducer that the configuration names."""
    nesting, width = config.nesting, config.text_config.hidden_size
    reducer = REDUCERS[nesting.kind]
    return reducer(nesting.options, get_nesting(nesting.kind), config.grid, width)


def _together(
    group_tensors: Sequence[Float[Tensor, "_ _ d"]], groups: Sequence[TileGroup]
) -> Float[Tensor, "t n d"]:
    """Features of the groups in the order of the batch, padded to the longest."""
    if len(group_tensors) == 1:
        return group_tensors[0]
    longest = max(tensor.shape[1] for tensor in group_tensors)
    padded = torch.cat(
        [pad(tensor, (0, 0, 0, longest - tensor.shape[1])) for tensor in group_tensors]
    )
    return padded[torch.cat([group.index for group in groups]).argsort()]
