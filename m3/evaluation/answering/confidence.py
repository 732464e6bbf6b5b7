"""Confidence of generated answers, recorded while the model generates: no second forward pass.

In: the distribution of each step, as `generate` gives it to a logits processor, and the ids it
chose. Out: a confidence per answer, the geometric mean of the probabilities of its tokens, the one
that ended it included.

The mean rather than the product, since a product falls with every token, so that short and long
answers could not share one scale; nothing is lost, the product is confidence ** answer_tokens.
Probabilities are the decoder's own: under sampling those before temperature, top-k and top-p, of
the token that was drawn; a repetition penalty is in them. An answer's end is where its turn ends,
even where a longer `until` cuts the text before.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor


class ChosenTokens(LogitsProcessor):
    """Records the log-probability of each token that one `generate` without beams chooses; changes
    no score.

    Held on the way: one step's distribution (rows x vocabulary) and a number per token and row.
    transformers puts such a processor after the repetition penalty and before temperature, top-k
    and top-p.
    """

    def __init__(self) -> None:
        self._distribution: Float[Tensor, "b v"] | None = None
        self._chosen: list[Float[Tensor, " b"]] = []

    def __call__(
        self, input_ids: Int[Tensor, "b l"], scores: Float[Tensor, "b v"]
    ) -> Float[Tensor, "b v"]:
        self._settle(input_ids[:, -1])
        self._distribution = scores.float().log_softmax(-1)
        return scores

    def _settle(self, chosen_ids: Int[Tensor, " b"]) -> None:
        """Record the probability of the token chosen last, which only the next step shows."""
        if self._distribution is not None:
            self._chosen.append(self._distribution.gather(1, chosen_ids[:, None])[:, 0])
            self._distribution = None

    def confidences(self, generated: Int[Tensor, "b t"], answer_lengths: list[int]) -> list[float]:
        """Confidence in each row's first `lengths` generated ids, at least one."""
        if len(self._chosen) < generated.shape[1]:
            self._settle(generated[:, -1])
        # a step may have run past the end
        log_probabilities = torch.stack(self._chosen[: generated.shape[1]], dim=1).cpu()
        assert log_probabilities.shape == generated.shape, (
            "not one distribution per generated token"
        )
        return [
            float(row_probabilities[:answer_length].mean().exp())
            for row_probabilities, answer_length in zip(
                log_probabilities, answer_lengths, strict=True
            )
        ]
