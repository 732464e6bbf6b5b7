"""Small parts of checkpoints for tests."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def make_tokenizer(words: int, *tokens: str) -> PreTrainedTokenizerFast:
    """`words` whole words, the three of Llama and `tokens` among them, and nothing else."""
    names = ["<unk>", "<s>", "</s>", *tokens]
    names += [f"w{number}" for number in range(len(names), words)]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(tokens),
    )
