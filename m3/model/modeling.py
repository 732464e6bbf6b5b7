"""M3ForConditionalGeneration: see an image once, read it at any number of visual tokens.

in:  `input_ids [b, l]` with placeholders, `pixel_values [i, 3, H, W]` (or `image_features [i, n, d]` seen before),
     `image_scales [s]`, `image_index [s]`: the scale of each placeholder span and the image it shows;
way: pixels -> vision tower -> connector -> `n` tokens per image      (get_image_features, once per image)
     -> nested to each span's scale and spliced into the text          (splice)
     -> decoder -> logits, loss, loss per scale, router losses;
out: `M3Output`.

The scale is data. Nothing here keeps it, and all-scales training is a batch like any other: several spans that read
the same image at different scales (see m3/data/multiscale.py).
"""

from dataclasses import dataclass
from os import PathLike

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput

from m3.model.configuration import M3Config
from m3.model.connectors import Resampler, build_connector
from m3.model.router_losses import RouterLosses, router_losses
from m3.model.splice import splice, token_scales
from m3.model.vision import vision_inputs
from m3.nesting import get_nesting


@dataclass
class M3Output(ModelOutput):
    """Output of `M3ForConditionalGeneration.forward`.

    loss, language_loss: scalars; `loss` is `language_loss` (the weighted mean over label tokens) plus the weighted router losses.
    logits `[b, l, vocab]`: None when skipped.
    scales `[k]`, scale_loss_sums `[k]`, scale_loss_counts `[k]`: unweighted loss summed over label tokens, and their
        number, per scale read (0: text without an image); ascending.
    balance_losses `[layers]`, z_losses `[layers]`, expert_load `[layers, experts]`: of a mixture-of-experts decoder.
    router_logits: one `[b * l, experts]` per layer.
    """

    loss: Tensor | None = None
    language_loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    scales: Tensor | None = None
    scale_loss_sums: Tensor | None = None
    scale_loss_counts: Tensor | None = None
    balance_losses: Tensor | None = None
    z_losses: Tensor | None = None
    expert_load: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None


class M3PreTrainedModel(PreTrainedModel):
    """What transformers needs to know of every M3 model."""

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
        """transformers looks for expert layers in this file; they are the decoder's, which takes or ignores the choice."""
        return True

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # the other options pass through kwargs
        self, save_directory: str | PathLike, *, save_original_format: bool = False, **kwargs
    ) -> None:
        """As in transformers, but weights keep the names of the modules unless the decoder's original ones are asked for.

        transformers renames fused experts on saving (`experts.gate_up_proj` -> `experts.fc1.weight` for Aria) and back in
        `from_pretrained`, but Trainer resumes without renaming back, and would go on with experts it never loaded.
        """
        super().save_pretrained(save_directory, save_original_format=save_original_format, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Resampler):
            nn.init.normal_(module.query, std=self.config.initializer_range)
            nn.init.normal_(module.position, std=self.config.initializer_range)


class M3Model(M3PreTrainedModel):
    """Vision tower, connector and decoder, without the language-model head."""

    def __init__(self, config: M3Config) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.connector = build_connector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @property
    def router_top_k(self) -> int | None:
        """Experts per token of the decoder's routers; None for a dense decoder."""
        recorder = (self.language_model._can_record_outputs or {}).get("router_logits")
        if recorder is None:
            return None
        routers = (m for m in self.language_model.modules() if isinstance(m, recorder.target_class))
        return next((int(router.top_k) for router in routers), None)

    def get_image_features(self, pixel_values: Float[Tensor, "i c h w"]) -> BaseModelOutputWithPooling:
        """Sees each image once. `.pooler_output [i, n, d]`: the connector's tokens, before nesting."""
        config = self.config
        inputs = vision_inputs(config.vision_config).inputs(config.vision_config, pixel_values.to(self.dtype))
        layer = config.vision_feature_layer
        seen = self.vision_tower(**inputs, output_hidden_states=layer is not None)
        features = seen.last_hidden_state if layer is None else seen.hidden_states[layer]
        if config.drop_class_token:
            features = features[:, 1:]
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=self.connector(features))

    def embed(
        self,
        input_ids: Int[Tensor, "b l"],
        pixel_values: Float[Tensor, "i c h w"] | None,
        image_features: Float[Tensor, "i n d"] | None,
        image_scales: Int[Tensor, " s"] | None,
        image_index: Int[Tensor, " s"] | None,
        is_continuation: bool = False,
    ) -> Float[Tensor, "b l d"]:
        """Embeddings of the text with every placeholder replaced by the nested tokens of its image.

        `is_continuation`: the text goes on from a cache; a placeholder in it was written by the model and stands for itself.
        """
        if pixel_values is not None and image_features is not None:
            raise ValueError("give pixel_values or image_features (seen before), not both")
        inputs_embeds = self.get_input_embeddings()(self._known_ids(input_ids))
        if pixel_values is None and image_features is None:
            placeholders = int((input_ids == self.config.image_token_id).sum())
            if placeholders and not is_continuation:
                raise ValueError(f"the text has {placeholders} image placeholders, but no pixel_values were given")
            if not self.training:
                return inputs_embeds
            # Under ZeRO-3 or FSDP every rank must run every part, also when its batch has no image.
            size = vision_inputs(self.config.vision_config).image_size(self.config.vision_config)
            blank = torch.zeros(1, 3, *size, dtype=self.dtype, device=inputs_embeds.device)
            return inputs_embeds + 0.0 * self._tokens(blank).sum()
        if image_scales is None:
            raise ValueError("images were given without image_scales: one scale per placeholder span, in reading order")
        features = image_features if pixel_values is None else self._tokens(pixel_values)
        assert features is not None  # without either we returned above
        if image_index is None:
            image_index = torch.arange(len(image_scales), device=image_scales.device)
            if len(image_scales) != len(features):
                raise ValueError(
                    f"{len(image_scales)} placeholder spans but {len(features)} images: image_index must say which "
                    "image each span shows"
                )
        nesting = get_nesting(self.config.nesting.kind)
        token = self.config.image_token_id
        return splice(inputs_embeds, input_ids, features, image_scales, image_index, token, nesting, self.config.grid)

    def _known_ids(self, input_ids: Int[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        """A placeholder beyond the vocabulary is looked up as id 0: visual tokens take its place anyway."""
        token = self.config.image_token_id
        if token < self.config.text_config.vocab_size:
            return input_ids
        return input_ids.masked_fill(input_ids == token, 0)

    def _tokens(self, pixel_values: Float[Tensor, "i c h w"]) -> Float[Tensor, "i n d"]:
        tokens = self.get_image_features(pixel_values).pooler_output
        assert tokens is not None  # get_image_features always gives it
        return tokens


class M3ForConditionalGeneration(M3PreTrainedModel, GenerationMixin):
    """The whole model. Made by `from_pretrained`, or of random weights by `M3ForConditionalGeneration(config)`."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: M3Config) -> None:
        super().__init__(config)
        self.model = M3Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Float[Tensor, "i c h w"]) -> BaseModelOutputWithPooling:
        """Sees each image once; pass `.pooler_output` as `image_features` to read it at any scale, any number of times."""
        return self.model.get_image_features(pixel_values)

    def forward(
        self,
        input_ids: Int[Tensor, "b l"],
        pixel_values: Float[Tensor, "i c h w"] | None = None,
        image_features: Float[Tensor, "i n d"] | None = None,
        image_scales: Int[Tensor, " s"] | None = None,
        image_index: Int[Tensor, " s"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "b l"] | None = None,
        past_key_values: Cache | None = None,
        labels: Int[Tensor, "b l"] | None = None,
        loss_weights: Float[Tensor, "b l"] | None = None,
        num_items_in_batch: Tensor | float | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        skip_logits: bool | None = None,
        return_dict: bool | None = None,
    ) -> M3Output:
        """One pass over any mix of scales.

        Args:
            image_index: which image each span shows; by default the spans show the images in order, one each.
            position_ids: where they restart, a new sequence begins in the same row (packing); needs no attention_mask.
            labels: next-token targets in place, -100 ignored.
            loss_weights: weight of each label token (default 1); all-scales training gives a copy at one of S scales 1/S.
            num_items_in_batch: what to divide the weighted loss by; default the sum of the weights.
            use_cache: off unless asked for. A cache made during training would let packed sequences see each other.
            logits_to_keep: only the last so many positions get logits; 0 is all.
            skip_logits: with labels, compute logits at label positions alone and return none; default in training.

        Raises:
            ValueError: images and placeholders that do not match, or a scale that cannot be reached.
        """
        is_continuation = past_key_values is not None and past_key_values.get_seq_length() > 0
        inputs_embeds = self.model.embed(
            input_ids, pixel_values, image_features, image_scales, image_index, is_continuation
        )
        top_k = self.model.router_top_k
        recording = {"output_router_logits": True} if top_k is not None and labels is not None else {}
        decoded = self.model.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=bool(use_cache),
            **recording,
        )
        hidden_states = decoded.last_hidden_state
        output = M3Output(past_key_values=decoded.past_key_values)
        if skip_logits is None:
            skip_logits = self.training and labels is not None
        if not skip_logits:
            output.logits = self.lm_head(hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states)
        if labels is None:
            return output
        scales = image_scales if image_scales is not None else input_ids.new_zeros(0)
        reads = token_scales(input_ids, scales, self.config.image_token_id, position_ids)
        weights = torch.ones_like(labels, dtype=torch.float32) if loss_weights is None else loss_weights
        self._add_language_loss(output, hidden_states, labels, weights, reads, position_ids, num_items_in_batch)
        if top_k is not None:
            share = 1.0 if num_items_in_batch is None else _weight_sum(labels, weights) / num_items_in_batch
            self._add_router_losses(output, decoded.router_logits, top_k, self._real(input_ids, attention_mask), share)
        return output

    def _add_language_loss(
        self,
        output: M3Output,
        hidden_states: Float[Tensor, "b l d"],
        labels: Int[Tensor, "b l"],
        weights: Float[Tensor, "b l"],
        reads: Int[Tensor, "b l"],
        position_ids: Int[Tensor, "b l"] | None,
        num_items_in_batch: Tensor | float | None,
    ) -> None:
        """Cross entropy at the label tokens: the weighted mean is the loss, the plain sums are kept per scale."""
        is_target = labels[:, 1:] != -100
        if position_ids is not None:  # the first token of a packed sequence is no continuation of the one before it
            is_target = is_target & (torch.diff(position_ids, dim=1) == 1)
        targets = labels[:, 1:][is_target]
        logits = self.lm_head(hidden_states[:, :-1][is_target])
        losses = cross_entropy(logits.float(), targets, reduction="none")
        weights, reads = weights[:, 1:][is_target], reads[:, 1:][is_target]
        total = (
            weights.sum().clamp(min=1e-12) if num_items_in_batch is None else num_items_in_batch
        )  # may have no target
        output.loss = output.language_loss = (losses * weights).sum() / total
        scales, which = reads.unique(return_inverse=True)
        output.scales = scales
        output.scale_loss_sums = losses.detach().new_zeros(len(scales)).index_add(0, which, losses.detach())
        output.scale_loss_counts = torch.bincount(which, minlength=len(scales))

    def _add_router_losses(
        self,
        output: M3Output,
        logits: tuple[Tensor, ...],
        top_k: int,
        is_real: Bool[Tensor, " tokens"],
        share: Tensor | float,
    ) -> None:
        assert output.loss is not None  # the language loss comes first
        losses: RouterLosses = router_losses(logits, top_k, is_real)
        added = self.config.router_balance_coef * losses.balance.sum() + self.config.router_z_coef * losses.z.sum()
        output.loss = output.loss + share * added
        output.balance_losses, output.z_losses = losses.balance.detach(), losses.z.detach()
        output.expert_load, output.router_logits = losses.expert_load, logits

    def _real(self, input_ids: Int[Tensor, "b l"], attention_mask: Tensor | None) -> Bool[Tensor, " tokens"]:
        """Which tokens are not padding. Packed batches have no mask; their padding is the pad token."""
        if attention_mask is not None and attention_mask.shape == input_ids.shape:
            return attention_mask.flatten().bool()
        pad = self.config.text_config.pad_token_id
        return torch.ones_like(input_ids.flatten(), dtype=torch.bool) if pad is None else input_ids.flatten() != pad

    # Below, pyright ignores: GenerationMixin's stub asks `self` for attributes that transformers' own models lack too.
    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]  # others pass through kwargs
        self, input_ids: Tensor, is_first_iteration: bool = False, **kwargs
    ) -> dict:
        """Images enter with the prompt; later steps read them from the cache."""
        prepare = super().prepare_inputs_for_generation  # pyright: ignore[reportAttributeAccessIssue]
        inputs = prepare(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and inputs.get("use_cache"):
            for name in ("pixel_values", "image_features", "image_scales", "image_index"):
                inputs[name] = None
        return inputs

    def _expand_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]  # its LongTensor is a Tensor
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs
    ) -> tuple[Tensor | None, dict]:
        """For beams and several answers: rows are repeated, images are not; every copy's spans point at the same images."""
        names = ("pixel_values", "image_features", "image_scales", "image_index")
        images = {name: kwargs.pop(name) for name in names if kwargs.get(name) is not None}
        rows = input_ids
        expand = super()._expand_inputs_for_generation  # pyright: ignore[reportAttributeAccessIssue]
        input_ids, kwargs = expand(expand_size, is_encoder_decoder, input_ids, **kwargs)
        if images and expand_size > 1:
            assert rows is not None  # spans stand in input_ids
            scales = images["image_scales"]
            index = images.get("image_index", torch.arange(len(scales), device=scales.device))
            ends = scales.cumsum(0)
            row_ends = (rows == self.config.image_token_id).sum(1).cumsum(0)
            row_of_span = torch.searchsorted(row_ends, ends)
            order = torch.cat([torch.where(row_of_span == r)[0].repeat(expand_size) for r in range(len(rows))])
            images |= {"image_scales": scales[order], "image_index": index[order]}
        return input_ids, kwargs | images


def _weight_sum(labels: Int[Tensor, "b l"], weights: Float[Tensor, "b l"]) -> Tensor:
    return weights[:, 1:][labels[:, 1:] != -100].sum()
