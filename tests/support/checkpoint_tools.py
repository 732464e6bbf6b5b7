"""Small parts of checkpoints for tests."""

from pathlib import Path

import torch
from numpy.lib.npyio import NpzFile
from tiny_models import make_config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)

from m3.checkpoints.assemble import Choices, assemble

ORIGINAL_IMAGE = -200
"""The original's placeholder."""


def make_tokenizer(words: int, *tokens: str) -> PreTrainedTokenizerFast:
    """`words` whole words, the three of Llama and `tokens` among them, and nothing else."""
    names = ["<unk>", "<s>", "</s>", *tokens]
    names += [f"w{number}" for number in range(len(names), words)]
    tokenizer = Tokenizer(
        models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(tokens),
    )


def assemble_small(folder: Path, tied: bool = False, **sizes: int) -> Path:
    """A tiny Llama of 96 words and no chat format with a tiny SigLIP before it; `<image>` and
    ChatML get the ids 96 to 98.
    """
    config = make_config("llama", vision="siglip_vision_model")
    torch.manual_seed(1)
    AutoModel.from_config(config.vision_config).save_pretrained(folder / "vision")
    SiglipImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(folder / "vision")
    text = config.text_config
    text.update({"tie_word_embeddings": tied, **sizes})
    AutoModelForCausalLM.from_config(text).save_pretrained(folder / "decoder")
    make_tokenizer(96).save_pretrained(folder / "decoder")
    assemble(folder / "vision", folder / "decoder", folder / "model", Choices(scales=(1, 9, 144)))
    return folder / "model"


def ids_of(reference: NpzFile, image_token_id: int) -> list[int]:
    """The prompt of a fixture in the original M3 format, its placeholder as ours; one per image."""
    return [
        image_token_id if token == ORIGINAL_IMAGE else int(token)
        for token in reference["input_ids"][0]
    ]


TEMPLATE = (  # as llava-hf writes it: lists of parts only
    "{% for message in messages %}{{ message.role.upper() ~ ': ' }}{% for part in message.content "
    "%}"
    "{% if part.type == 'image' %}{{ '<image>\n' }}{% else %}{{ part.text }}{% endif %}{% endfor "
    "%}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def make_llava(
    folder: Path, decoder: str, layer: int = -2, tied: bool = False
) -> LlavaForConditionalGeneration:
    """A random checkpoint written by transformers itself."""
    ours = make_config(decoder, "clip_vision_model")
    text = ours.text_config.to_dict() | {"tie_word_embeddings": tied}
    config = LlavaConfig(
        vision_config=ours.vision_config.to_dict(),
        text_config=text,
        image_token_index=3,
        image_seq_length=144,
        vision_feature_layer=layer,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15)
    tokenizer = make_tokenizer(96, "<image>")
    tokenizer.chat_template = TEMPLATE
    pixels = {"height": 48, "width": 48}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size=pixels),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model
