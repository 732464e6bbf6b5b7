"""A recipe resolved: the model's configuration, the rates of its parts and the arithmetic of its
batch.

in: a recipe and a number of devices; out: a `ResolvedRun`, which the dry run, `m3 data check`,
`m3 data show`, `build` and the training itself read. No weight is read or drawn here.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase

from m3.auto import M3Config, M3Processor
from m3.checkpoints.processors import make_processor
from m3.config import load
from m3.model.configuration import decode_nesting
from m3.processing.chat_template import IMAGE_TOKEN
from m3.training.recipe.recipe import Recipe
from m3.training.recipe.sections import NewModel, Rate
from m3.training.setup.context_length import extended
from m3.training.setup.parameter_groups import chosen_rates
from m3.training.setup.row_attention import RowAttention, choose_row_attention


@dataclass(frozen=True)
class ResolvedRun:
    """Everything that follows from a recipe on so many devices; each value is computed once, when
    it is first read.

    `before`: configuration that the stage before leaves, where its checkpoint is not written yet.
    """

    recipe: Recipe
    devices: int = 1
    before: M3Config | None = None

    @property
    def config(self) -> M3Config:
        """The model's configuration as it trains: the recipe's reducer, positions and scales.

        A copy, since models write into theirs.

        Raises:
            ValueError: nothing says what the model is, or the recipe asks for what it cannot be.
        """
        return deepcopy(self._config)

    @cached_property
    def _config(self) -> M3Config:
        stated = deepcopy(self.before) or _stated_config(self.recipe)
        config = extended(exchange_reducer(stated, self.recipe.reducer), self.recipe.context)
        scales = self.recipe.matryoshka_vis_token_scale
        config.nesting = replace(config.nesting, trained_scales=scales)
        return config

    @property
    def config_left(self) -> M3Config:
        """The configuration of the checkpoint that the run leaves: its tokens are not new to the
        next stage where the tables have trained.
        """
        config = self.config
        if self.recipe.trains_tables:
            config.new_token_ids = None
        return config

    @cached_property
    def processor(self) -> M3Processor:
        """The processor that goes with `config`; the decoder's weights are neither read nor drawn."""
        recipe = self.recipe
        if recipe.new_model is not None:
            processor = new_processor(recipe.new_model, self.config)
        else:
            assert recipe.model is not None  # Recipe makes sure of one of them
            processor = M3Processor.from_pretrained(recipe.model)
        if recipe.reducer is not None:
            kind = recipe.reducer.get("kind", "grid_pool")
            processor.nesting = processor.nesting | {"kind": kind}
        processor.train_at(recipe.matryoshka_vis_token_scale)
        return processor

    @cached_property
    def row_attention(self) -> RowAttention:
        """The attention of rows. Under ZeRO-3, which shards every model that is made, it must be
        read before DeepSpeed starts.
        """
        return choose_row_attention(self.recipe, self.config)

    @cached_property
    def rates(self) -> dict[str, Rate]:
        """Learning rate of each part, or `frozen`."""
        return chosen_rates(self.recipe.parts)

    @property
    def highest_rate(self) -> float:
        """The learning rate of the part that learns fastest."""
        return max(float(rate) for rate in self.rates.values() if rate != "frozen")

    @cached_property
    def accumulation(self) -> int:
        """Micro-steps of an optimiser step."""
        return self.recipe.schedule.accumulate(self.devices)

    @property
    def step_samples(self) -> int:
        """Samples of an optimiser step, over all devices."""
        return self.recipe.schedule.batch_size * self.devices * self.accumulation


def _stated_config(recipe: Recipe) -> M3Config:
    if recipe.new_model is not None:
        return new_config(recipe.new_model)
    assert recipe.model is not None  # Recipe makes sure of one of them
    if (Path(recipe.model) / "config.json").is_file():
        return M3Config.from_pretrained(recipe.model)
    if recipe.architecture is None:
        raise ValueError(
            f"model: {recipe.model} has no config.json, and the recipe names no "
            "architecture to plan with"
        )
    if recipe.architecture not in shipped_architectures():
        known_names = ", ".join(shipped_architectures())
        raise ValueError(f"architecture: no {recipe.architecture!r}; there are {known_names}")
    return read_architecture(shipped_architectures()[recipe.architecture])


def shipped_architectures() -> dict[str, Path]:
    """Files of m3/recipes/architectures by their names: sizes of models whose weights are elsewhere."""
    folder = Path(__file__).resolve().parents[2] / "recipes" / "architectures"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def read_architecture(file: Path) -> M3Config:
    """The configuration that such a file says."""
    return M3Config(**load(file, dict))


def exchange_reducer(config: M3Config, reducer: Mapping[str, Any] | None) -> M3Config:
    """The configuration with another token reducer, where one is given.

    Raises:
        ValueError: an unknown kind or setting.
    """
    if reducer is None:
        return config
    if "trained_scales" in reducer:
        raise ValueError(
            "recipe: reducer takes no trained_scales; they are matryoshka_vis_token_scale"
        )
    changed = deepcopy(config)
    changed.nesting = decode_nesting(
        {**reducer, "trained_scales": list(config.nesting.trained_scales)}
    )
    return changed


def new_config(spec: NewModel) -> M3Config:
    """The configuration of a model of new weights: what the recipe says, the tokenizer's ids,
    the tower's configuration.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(spec.tokenizer)
    config_options = dict(spec.config)
    image_token = config_options.pop("image_token", IMAGE_TOKEN)
    text_options = dict(config_options.pop("text_config"))
    text_options |= {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    tied = text_options.get("tie_word_embeddings", False)
    if (
        config_options.setdefault("tie_word_embeddings", tied) != tied
        and "tie_word_embeddings" in text_options
    ):
        raise ValueError(
            f"new_model.config: tie_word_embeddings is {config_options['tie_word_embeddings']}, and "
            f"{tied} in its text_config; say it once"
        )
    if spec.vision_tower is not None:
        config_options["vision_config"] = AutoConfig.from_pretrained(spec.vision_tower)
    # of one token; a list only of several
    image_token_id = cast(int, tokenizer.convert_tokens_to_ids(image_token))
    return M3Config(text_config=text_options, image_token_id=image_token_id, **config_options)


def new_processor(spec: NewModel, config: M3Config) -> M3Processor:
    """The processor of a model of new weights."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(spec.tokenizer)
    image_processor = AutoImageProcessor.from_pretrained(
        spec.vision_tower or spec.tokenizer, backend="pil"
    )
    return make_processor(
        config, image_processor, tokenizer, None, spec.config.get("image_token", IMAGE_TOKEN)
    )
