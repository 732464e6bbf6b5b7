"""M3ForConditionalGeneration: see an image once, read it at any number of visual tokens.

in:  `input_ids [b, l]` with placeholders in `s` spans, and of the `i` images in `t` tiles:

    pixel_values   [t, 3, H, W]  tiles of all images, image after image (or `image_features [t, n, d]`, seen before)
    image_scales   [s]           the scale of each span: visual tokens per tile
    image_index    [s]           the image each span shows; absent: one span per image, in order
    image_tiles    [i]           tiles of each image; absent: one each
    image_sizes    [i, 2]        (height, width) of each image as it came, where the tiling needs it (`anyres`)
    tile_tokens    [i]           tokens the connector gives per tile of each image, where that varies
    pixel_mask     [t, H, W]     which pixels are no padding, where tiles have several sizes or shapes
    image_resolutions [i]        resolution each image is seen at, in pixels, 0 the largest; absent: all at that

way: images -> input embeddings (m3/model/backbone.py) -> decoder -> logits, loss, loss per scale,
    router losses;
out: `M3Output`.

How many placeholders a span has is `config.reader.count(scale, tiles)` (m3/nesting/image_reader.py),
which the processor asks too.

The scale is data. Nothing here keeps it, and all-scales training is a batch like any other: several
spans that read the same image at different scales (see m3/data/multiscale.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput, can_return_tuple

from m3.model.backbone import M3Model, M3PreTrainedModel
from m3.model.configuration import M3Config
from m3.model.distillation import Distillation, divergences, teachers
from m3.model.image_inputs import IMAGE_INPUTS, ImageInputs, Span
from m3.model.packed_sequences import PackedSequences, real_tokens
from m3.model.router_losses import RouterLosses, RouterStep, router_losses
from m3.model.splice import token_budgets
from m3.nesting import Budget


@dataclass
class M3Output(ModelOutput):
    """Output of `M3ForConditionalGeneration.forward`; its first fields are those of transformers'
    outputs, in their order.

    loss, language_loss: scalars; `loss` is `language_loss` (the weighted mean over label tokens)
        plus the weighted router losses and the weighted `distil_loss`.
    logits `[b, l, vocab]`: None when skipped. scales, resolutions, scale_loss_sums,
    scale_loss_counts `[k]`: unweighted loss summed over label tokens, and their number, per budget
        read (scale 0: text without an image; resolution 0: the largest); ascending.
    balance_losses `[layers]`, z_losses `[layers]`, expert_load `[layers, experts]`: of a
    mixture-of-experts decoder.
    hidden_states, attentions: the decoder's, `[b, l, d]` (the embeddings first) and `[b, heads, l,
        l]`; where asked for.
    router_logits: one `[tokens, experts]` per layer; of all `b * l` places, or of the sequences'
        tokens with packed attention.
    distil_loss, distil_loss_sum, distil_loss_count: scalars; divergence of the coarser scales'
        label tokens from the largest scale's, weighted and divided as `language_loss`; the
        unweighted sum, and over how many tokens. Where asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    language_loss: Tensor | None = None
    scales: Tensor | None = None
    resolutions: Tensor | None = None
    scale_loss_sums: Tensor | None = None
    scale_loss_counts: Tensor | None = None
    balance_losses: Tensor | None = None
    z_losses: Tensor | None = None
    expert_load: Tensor | None = None
    router_logits: tuple[Tensor, ...] | None = None
    distil_loss: Tensor | None = None
    distil_loss_sum: Tensor | None = None
    distil_loss_count: Tensor | None = None


@dataclass(frozen=True)
class DecoderRows:
    """Rows of the decoder beside their embeddings: masks, positions, packing, cache."""

    attention_mask: Tensor | None
    position_ids: Int[Tensor, "b l"] | None
    sequence_lengths: Int[Tensor, "b _"] | None
    past_key_values: Cache | None


class M3ForConditionalGeneration(M3PreTrainedModel, GenerationMixin):
    """The whole model.

    Made by `from_pretrained`, or of random weights by `M3ForConditionalGeneration(config)`.

    Arguments of `forward`, beside those that transformers' models have in common:

        pixel_values ... pixel_mask: see the head of this file.
        position_ids: where they restart, a new sequence begins in the same row (packing); needs
            no attention_mask.
        sequence_lengths: lengths of the sequences of each row, zeros behind them; the rest of a
            row is padding. With them packed attention computes the sequences alone
            (m3/model/packed_attention.py).
        labels: next-token targets in place, -100 ignored.
        loss_weights: weight of each label token (default 1); all-scales training gives a copy
            at one of S scales 1/S.
        num_items_in_batch: what to divide the weighted loss by; default the sum of the weights.
        router_load, router_tokens: of the whole step that this is a micro-batch of
            (m3/model/router_losses.py); by default this batch is the whole step.
        teacher_index, distil_weight, distil_temperature: self-distillation over scales
            (m3/model/distillation.py); both of the first two, or none.
        use_cache: off unless asked for. A cache made during training would let packed sequences
            see each other.
        logits_to_keep: only the last so many positions get logits; 0 is all.
        written_placeholders: how many placeholders at the end of a single row the model wrote
            itself (candidates of assisted generation): they stand for themselves and belong to
            no image.
        skip_logits: with labels, compute logits at label positions alone and return none;
            default in training.
        inputs_embeds: instead of input_ids, with the tokens of images already in place
            (`model.model.embed`).
        output_hidden_states, output_attentions: the decoder's, of every layer; None: as the
            configuration says. Attentions need the attention `eager`.
        return_dict: False for a tuple of what is not None (through transformers'
            `can_return_tuple`).

    `forward` raises:
        ValueError: images and placeholders that do not match, a scale that cannot be reached, a
            placeholder beyond the vocabulary among the labels, or one of teacher_index and
            distil_weight without the other.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    accepts_loss_kwargs = True  # so that Trainer passes `num_items_in_batch`

    def __init__(self, config: M3Config) -> None:
        super().__init__(config)
        self.model = M3Model(config)
        self.lm_head = nn.Linear(
            config.text_config.hidden_size, config.text_config.vocab_size, bias=False
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_image_features(
        self,
        pixel_values: Float[Tensor, "t c h w"],
        pixel_mask: Bool[Tensor, "t h w"] | None = None,
    ) -> BaseModelOutputWithPooling:
        """Sees each tile once; pass `.pooler_output` as `image_features` to read it at any
        scale, any number of times.
        """
        return self.model.get_image_features(pixel_values, pixel_mask)

    @can_return_tuple
    def forward(
        self,
        input_ids: Int[Tensor, "b l"] | None = None,
        pixel_values: Float[Tensor, "t c h w"] | None = None,
        image_features: Float[Tensor, "t n d"] | None = None,
        image_scales: Int[Tensor, " s"] | None = None,
        image_index: Int[Tensor, " s"] | None = None,
        image_tiles: Int[Tensor, " i"] | None = None,
        image_sizes: Int[Tensor, "i 2"] | None = None,
        tile_tokens: Int[Tensor, " i"] | None = None,
        pixel_mask: Bool[Tensor, "t h w"] | None = None,
        image_resolutions: Int[Tensor, " i"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "b l"] | None = None,
        sequence_lengths: Int[Tensor, "b _"] | None = None,
        past_key_values: Cache | None = None,
        labels: Int[Tensor, "b l"] | None = None,
        loss_weights: Float[Tensor, "b l"] | None = None,
        num_items_in_batch: Tensor | float | None = None,
        router_load: Float[Tensor, "layers experts"] | None = None,
        router_tokens: Float[Tensor, ""] | None = None,
        teacher_index: Int[Tensor, "b l"] | None = None,
        distil_weight: float | None = None,
        distil_temperature: float = 1.0,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        skip_logits: bool | None = None,
        inputs_embeds: Float[Tensor, "b l d"] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        written_placeholders: int = 0,
    ) -> M3Output:
        """One pass over any mix of scales; the class says what the arguments are."""
        images = ImageInputs(
            pixel_values, image_features, image_scales, image_index,
            image_tiles, image_sizes, tile_tokens, pixel_mask, image_resolutions,
        )  # fmt: skip
        distil = _distillation(teacher_index, distil_weight, distil_temperature)
        rows = DecoderRows(attention_mask, position_ids, sequence_lengths, past_key_values)
        spans = images.spans(self.config.reader)
        if inputs_embeds is None:
            inputs_embeds = self._embed(input_ids, images, spans, rows, written_placeholders)
        elif input_ids is not None or images.number_of_tiles:
            raise _embeds_error(input_ids)
        recording = self._recorded(labels is not None, output_hidden_states, output_attentions)
        packed, decoded = self._decode(inputs_embeds, rows, bool(use_cache), recording)
        is_skipped = self.training and labels is not None if skip_logits is None else skip_logits
        output = self._output(decoded, recording, None if is_skipped else logits_to_keep)
        if labels is not None:
            budgets = sorted({span.budget for span in spans})
            reads = self._budgets_read(input_ids, labels, spans, budgets, position_ids)
            self._add_language_loss(
                output, decoded, labels, loss_weights, reads, rows, num_items_in_batch, distil
            )
            _name_budgets(output, budgets)
            step = _router_step(router_load, router_tokens)
            self._add_router_losses(output, decoded, labels, rows, packed, step)
        return M3Output(**output)  # in the order of its fields, for tuples

    def _embed(
        self,
        input_ids: Int[Tensor, "b l"] | None,
        images: ImageInputs,
        spans: list[Span],
        rows: DecoderRows,
        written: int,
    ) -> Float[Tensor, "b l d"]:
        """Embeddings of the text with the tokens of its images in place."""
        if input_ids is None:
            raise ValueError("give input_ids or inputs_embeds")
        cache = rows.past_key_values
        is_continuation = cache is not None and cache.get_seq_length() > 0
        return self.model.embed(input_ids, images, spans, is_continuation, written)

    def _decode(
        self,
        inputs_embeds: Float[Tensor, "b l d"],
        rows: DecoderRows,
        use_cache: bool,
        recording: Mapping[str, bool],
    ) -> tuple[PackedSequences | None, Any]:
        """The layout of packed sequences, if any, and the decoder's output."""
        positions, length = rows.position_ids, inputs_embeds.shape[1]
        packed = self.model.packed_sequences(rows.sequence_lengths, positions, length)
        unpacked_rows = {
            "attention_mask": rows.attention_mask,
            "past_key_values": rows.past_key_values,
            "use_cache": use_cache,
        }
        return packed, self.model.decode(inputs_embeds, positions, packed, unpacked_rows, recording)

    def _output(
        self, decoded: Any, recording: Mapping[str, bool], logits_to_keep: int | None
    ) -> M3Output:
        """Logits of the last `logits_to_keep` positions (0: of all, None: of none), and what the
        decoder recorded.
        """
        output = M3Output(
            past_key_values=decoded.past_key_values,
            hidden_states=decoded.hidden_states if "output_hidden_states" in recording else None,
            attentions=decoded.attentions if "output_attentions" in recording else None,
        )
        if logits_to_keep is not None:
            hidden_states = decoded.last_hidden_state
            output.logits = self.lm_head(
                hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states
            )
        return output

    def _budgets_read(
        self,
        input_ids: Int[Tensor, "b l"] | None,
        labels: Int[Tensor, "b l"],
        spans: list[Span],
        budgets: list[Budget],
        position_ids: Int[Tensor, "b l"] | None,
    ) -> Int[Tensor, "b l"]:
        """The place in `budgets` of what each token reads; -1 in text and in embeddings, whose
        images are not known.
        """
        if input_ids is None:
            return torch.full_like(labels, -1)
        return token_budgets(input_ids, spans, budgets, self.config.image_token_id, position_ids)

    def _recorded(
        self, has_labels: bool, hidden_states: bool | None, attentions: bool | None
    ) -> dict[str, bool]:
        """Keywords by which the decoder keeps what it computes on its way."""
        if hidden_states is None:
            hidden_states = self.config.output_hidden_states
        if attentions is None:
            attentions = self.config.output_attentions
        implementation = self.model.language_model.config._attn_implementation
        if attentions and implementation != "eager":
            raise ValueError(
                f"output_attentions: the attention {implementation!r} does not write its weights "
                "out; call "
                "model.set_attn_implementation('eager') first"
            )
        is_recorded = {
            "output_router_logits": has_labels and self.model.router_top_k is not None,
            "output_hidden_states": hidden_states,
            "output_attentions": attentions,
        }
        return {name: True for name, recorded in is_recorded.items() if recorded}

    def _add_language_loss(
        self,
        output: M3Output,
        decoded: Any,
        labels: Int[Tensor, "b l"],
        loss_weights: Float[Tensor, "b l"] | None,
        reads: Int[Tensor, "b l"],
        rows: DecoderRows,
        num_items_in_batch: Tensor | float | None,
        distil: Distillation | None,
    ) -> None:
        """Cross entropy at the label tokens: the weighted mean is the loss, the plain sums are
        kept per budget, of which `output.scales` are the places for now.
        """
        is_target = labels[:, 1:] != -100
        # the first token of a packed sequence is no continuation of the one before it
        if rows.position_ids is not None:
            is_target = is_target & (torch.diff(rows.position_ids, dim=1) == 1)
        targets = labels[:, 1:][is_target]
        token = self.config.image_token_id
        # a head that an adapter wraps does not say its width
        vocabulary = self.config.text_config.vocab_size
        if token >= vocabulary and bool((targets == token).any()):
            raise ValueError(
                f"labels hold the image placeholder {token}, which lies beyond the {vocabulary} "
                "tokens that "
                "the model can say: set these labels to -100"
            )
        logits = self.lm_head(decoded.last_hidden_state[:, :-1][is_target])
        losses = cross_entropy(logits.float(), targets, reduction="none")
        weights = torch.ones_like(labels).float() if loss_weights is None else loss_weights
        weights, reads = weights[:, 1:][is_target], reads[:, 1:][is_target]
        total = (
            weights.sum().clamp(min=1e-12) if num_items_in_batch is None else num_items_in_batch
        )  # may have no target
        output.loss = output.language_loss = (losses * weights).sum() / total
        scales, scale_index = reads.unique(return_inverse=True)
        output.scales = scales
        output.scale_loss_sums = (
            losses.detach().new_zeros(len(scales)).index_add(0, scale_index, losses.detach())
        )
        output.scale_loss_counts = torch.bincount(scale_index, minlength=len(scales))
        if distil is not None:
            is_student, teacher = teachers(is_target, distil.teacher_index)
            token_divergences = divergences(logits, is_student, teacher, distil.temperature)
            output.distil_loss = (token_divergences * weights[is_student]).sum() / total
            output.distil_loss_sum, output.distil_loss_count = (
                token_divergences.detach().sum(),
                is_student.sum(),
            )
            output.loss = output.language_loss + distil.weight * output.distil_loss

    def _add_router_losses(
        self,
        output: M3Output,
        decoded: Any,
        labels: Int[Tensor, "b l"],
        rows: DecoderRows,
        packed: PackedSequences | None,
        step: RouterStep | None,
    ) -> None:
        """Losses of a mixture's routers over the tokens that are no padding."""
        top_k = self.model.router_top_k
        if top_k is None:
            return
        assert output.loss is not None  # the language loss comes first
        logits: tuple[Tensor, ...] = decoded.router_logits
        real = real_tokens(labels, rows.attention_mask, rows.sequence_lengths)
        real = real.flatten() if packed is None else packed.take(real)[0]
        losses: RouterLosses = router_losses(logits, top_k, real, step)
        added = (
            self.config.router_balance_coef * losses.balance.sum()
            + self.config.router_z_coef * losses.z.sum()
        )
        output.loss = output.loss + added
        output.balance_losses, output.z_losses = losses.balance.detach(), losses.z.detach()
        output.expert_load, output.router_logits = losses.expert_load, logits

    # Below, pyright ignores: GenerationMixin's stub asks `self` for attributes that transformers' own models lack too.
    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]  # others pass through kwargs
        self,
        input_ids: Tensor,
        is_first_iteration: bool = False,
        inputs_embeds: Tensor | None = None,
        **kwargs,
    ) -> dict:
        """Images enter with the prompt; later steps read them from the cache.

        The model that drafts in assisted generation is never told that an iteration is its first;
        its empty cache says so.
        """
        prepare = super().prepare_inputs_for_generation  # pyright: ignore[reportAttributeAccessIssue]
        # `generate` hands on what stop_strings needed, and `forward` refuses what it does not know
        kwargs.pop("tokenizer", None)
        cache: Cache | None = kwargs.get("past_key_values")
        if (
            cache is not None
            and cache.get_seq_length() == 0
            and kwargs.get("next_sequence_length") != 1
        ):
            is_first_iteration = True
        inputs = prepare(
            input_ids, is_first_iteration=is_first_iteration, inputs_embeds=inputs_embeds, **kwargs
        )
        if not is_first_iteration and inputs.get("use_cache"):
            return inputs | dict.fromkeys(IMAGE_INPUTS)
        images = ImageInputs(**{name: inputs.get(name) for name in IMAGE_INPUTS})
        if (
            len(input_ids) == 1 and images.number_of_tiles and inputs.get("input_ids") is not None
        ):  # the prompt's placeholders were counted before it went on
            expected = sum(span.count for span in images.spans(self.config.reader))
            present = int((inputs["input_ids"] == self.config.image_token_id).sum())
            inputs["written_placeholders"] = max(0, present - expected)
        return inputs

    def _expand_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]  # its LongTensor is a Tensor
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **kwargs,
    ) -> tuple[Tensor | None, dict]:
        """For beams and several answers: rows are repeated, images are not; every copy's spans
        point at the same images.
        """
        images = ImageInputs(**{name: kwargs.pop(name, None) for name in IMAGE_INPUTS})
        rows = input_ids
        cache: Cache | None = kwargs.get("past_key_values")
        token, reader = self.config.image_token_id, self.config.reader
        length = 0 if cache is None else int(cache.get_seq_length())
        if length and rows is not None and images.number_of_tiles:
            images = images.behind_cache(rows, length, token, reader)
            rows = rows[:, length:]
        expand = super()._expand_inputs_for_generation  # pyright: ignore[reportAttributeAccessIssue]
        input_ids, kwargs = expand(expand_size, is_encoder_decoder, input_ids, **kwargs)
        assert rows is not None  # spans stand in input_ids
        return input_ids, kwargs | images.repeated(rows, expand_size, token, reader)


def _name_budgets(output: M3Output, budgets: list[Budget]) -> None:
    """Tokens and resolution in place of the numbers of the budgets; 0 and 0 of text."""
    assert output.scales is not None  # the places of the budgets, from the language loss
    places = output.scales.tolist()
    read = [Budget(0, None) if place < 0 else budgets[place] for place in places]
    output.resolutions = output.scales.new_tensor([budget.resolution or 0 for budget in read])
    output.scales = output.scales.new_tensor([budget.tokens for budget in read])


def _embeds_error(input_ids: Tensor | None) -> ValueError:
    """The error for embeddings that do not come alone: only ids tell where an image stands."""
    if input_ids is not None:
        return ValueError("give input_ids or inputs_embeds, not both")
    return ValueError(
        "images need input_ids, whose placeholders say where they stand; with inputs_embeds their "
        "tokens must be in place already: model.model.embed makes such embeddings"
    )


def _router_step(load: Tensor | None, tokens: Tensor | None) -> RouterStep | None:
    """Router statistics of the whole optimiser step, where the caller has them."""
    return None if load is None or tokens is None else RouterStep(load, tokens)


def _distillation(
    teacher_index: Tensor | None, weight: float | None, temperature: float
) -> Distillation | None:
    """None where neither is given."""
    if teacher_index is None and weight is None:
        return None
    if teacher_index is None or weight is None:
        present_name, absent_name = (
            ("distil_weight", "teacher_index")
            if teacher_index is None
            else ("teacher_index", "distil_weight")
        )
        raise ValueError(
            "self-distillation takes teacher_index and distil_weight together, and got "
            f"{present_name} without {absent_name}; Collator(teacher_index=True) makes the first, "
            "the recipe's `distil` gives the second"
        )
    return Distillation(teacher_index, weight, temperature)
