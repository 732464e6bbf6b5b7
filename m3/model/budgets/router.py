"""The budget router: looks at the cheapest view of an image and at the question, and predicts what
each budget of the ladder would lose.

in:  the connector's tokens of the cheapest view `[i, n, d]` of one image each, and the embeddings of
     the prompt's words `[i, q, d]`;
out: a value per budget `[i, k]`, lower is better; only differences mean something (the regret of a
     budget is its value less the least).

A transformer encoder of one narrow layer over a learned reading token, the view and the words. Both
inputs are what the model computes anyway. Predecessors: AVG-LLaVA (https://arxiv.org/abs/2410.02745)
ranks granularities by the decoder's log-likelihood; ViCO of InternVL3.5
(https://arxiv.org/abs/2508.18265) labels tiles by the ratio of losses at two resolutions.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from m3.model.budgets.choice import BudgetChoice

MAX_WORDS = 512
"""Tokens of the prompt that the router reads, the last ones."""

VALUES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "score": torch.sigmoid,
    "ratio": torch.sigmoid,
    "loss_gap": lambda outputs: outputs,
    "ranking": lambda outputs: outputs,
}
"""By what the router was trained to predict (m3/training/budget_router/targets.py): its outputs as
values, of which lower is better.
"""


class BudgetRouter(nn.Module):
    """Made of a `BudgetChoice` and the decoder's width."""

    def __init__(self, choice: BudgetChoice, width: int) -> None:
        super().__init__()
        inner = choice.width
        self.norm_view, self.norm_words = nn.LayerNorm(width), nn.LayerNorm(width)
        self.view, self.words = nn.Linear(width, inner), nn.Linear(width, inner)
        self.reading_token = nn.Parameter(torch.empty(inner))
        self.word_positions = nn.Parameter(torch.empty(MAX_WORDS, inner))
        layer = nn.TransformerEncoderLayer(
            inner, choice.heads, 4 * inner, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, choice.layers, enable_nested_tensor=False)
        self.norm_out = nn.LayerNorm(inner)
        self.head = nn.Linear(inner, len(choice.budgets))

    def init_weights(self, std: float) -> None:
        """Draw the parameters that are no linear and no normalisation layer."""
        nn.init.normal_(self.reading_token, std=std)
        nn.init.normal_(self.word_positions, std=std)

    def forward(
        self,
        view: Float[Tensor, "i n d"],
        words: Float[Tensor, "i q d"],
        is_word: Bool[Tensor, "i q"],
    ) -> Float[Tensor, "i k"]:
        """Words stand at the end of their row; `is_word` is False on the padding before them."""
        words, is_word = words[:, -MAX_WORDS:], is_word[:, -MAX_WORDS:]
        dtype = self.reading_token.dtype
        positions = self.word_positions[MAX_WORDS - words.shape[1] :]
        inputs = torch.cat(
            [
                self.reading_token.expand(len(view), 1, -1),
                self.view(self.norm_view(view.to(dtype))),
                self.words(self.norm_words(words.to(dtype))) + positions,
            ],
            dim=1,
        )
        is_seen = is_word.new_ones(len(view), 1 + view.shape[1])
        padding = ~torch.cat([is_seen, is_word], dim=1)
        hidden_states = self.encoder(inputs, src_key_padding_mask=padding)
        return self.head(self.norm_out(hidden_states[:, 0]))

    def flops(self, view_tokens: int, words: int) -> int:
        """Floating-point operations for one image: linear layers and the square of attention."""
        inner, tokens = self.reading_token.numel(), 1 + view_tokens + min(words, MAX_WORDS)
        layers = len(self.encoder.layers)
        projections = 2 * (tokens - 1) * self.view.weight.numel()
        # queries, keys, values, output, and the two layers of four times the width
        encoder = layers * (2 * tokens * 12 * inner**2 + 4 * tokens**2 * inner)
        return projections + encoder + 2 * self.head.weight.numel()
