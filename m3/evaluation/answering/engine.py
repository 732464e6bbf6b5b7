"""Answers questions about images, many at a time, each at its own number of visual tokens.

In:  `Question`s: the text after the chat template with one image token per image, the images, the
     budget, and either how to decode or a continuation to score.
Way: each distinct image -> processor -> tower -> connector, once at each resolution
     (feature_cache.py);
     each text -> ids -> one placeholder per visual token -> rows padded on the left -> generate or forward.
Out: `Reply`s: the text and how sure of it, or the log-likelihood, and how many tokens and seconds
    it took.

A batch may mix scales. Nothing is caught here: what goes wrong in one question is raised, never
answered with "".
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from jaxtyping import Int
from torch import Tensor
from transformers import LogitsProcessorList

from m3.digest import digest, digest_files, source_digest
from m3.evaluation.answering.confidence import ChosenTokens
from m3.evaluation.answering.decoding import Decoding
from m3.evaluation.answering.expert_routing import Recorded, recording
from m3.evaluation.answering.feature_cache import PictureCache
from m3.evaluation.answering.questions import Picture, Question, Reply
from m3.evaluation.answering.seeded_sampling import SeededSampling, question_seeds
from m3.evaluation.answering.settling import settle
from m3.evaluation.token_reduction.fastv import Pruned, mean_visual_tokens, pruning
from m3.evaluation.token_reduction.methods import FASTV
from m3.evaluation.token_reduction.table import ChosenTokenReducer
from m3.inference.generation import answer_room, end_token_ids, token_ids_alone
from m3.inference.loading import load
from m3.model import M3ForConditionalGeneration
from m3.model.reducers import NoOptions
from m3.nesting import Budget, Tiles
from m3.processing.control_tokens import FENCED, control_tokens, encode_fenced, fence
from m3.processing.processor import M3Processor, expand_image_tokens

WEIGHT_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")
ROOM_FOR_TEXT = 32
"""Text tokens per row in the token budget of a batch."""


@dataclass(frozen=True)
class Row:
    """A question as ids."""

    ids: list[int]  # placeholders expanded, continuation included
    continuation: int  # how many of the last ids are the continuation
    visual: int  # how many of the ids are placeholders of the pictures
    # how many visual tokens the decoder ends with: fewer than `visual` where it drops some on its
    # way
    kept: int
    new_tokens: int  # that the answer may have


class Engine:
    """A model and its processor. Holds no scale: each question brings its own."""

    def __init__(
        self,
        model: M3ForConditionalGeneration,
        processor: M3Processor,
        weights: str,
        cache_bytes: int = 1 << 30,
        outline: M3ForConditionalGeneration | None = None,
    ) -> None:
        """`outline`: the same modules at their whole sizes, for counting, where `model` holds a
        part of every weight (ZeRO-3).
        """
        self.model = model.eval()
        self.outline = model if outline is None else outline
        self.processor = processor
        self.weights = weights
        self.pictures = PictureCache(model, processor, cache_bytes)
        self._control_tokens = control_tokens(processor)

    @classmethod
    def load(
        cls, pretrained: str, device: str = "cpu", dtype: str = "auto", attention: str = "sdpa"
    ) -> "Engine":
        """From a folder or a hub id.

        `dtype`: "auto" (as saved) or a torch name; `attention`: as transformers names it.
        """
        checkpoint_folder = (
            Path(pretrained) if Path(pretrained).is_dir() else Path(snapshot_download(pretrained))
        )
        model, processor = load(checkpoint_folder, device=device, dtype=dtype, attention=attention)
        weight_files = [
            weight_file
            for weight_file in checkpoint_folder.iterdir()
            if weight_file.is_file() and weight_file.suffix in WEIGHT_SUFFIXES
        ]
        reducer_code = source_digest(type(model.model.reducer))
        weights = digest(
            [digest_files(weight_files, checkpoint_folder), str(model.dtype), reducer_code]
        )
        return cls(model, processor, weights)

    @property
    def default_scale(self) -> int | str:
        """The budget of most tokens that the model was trained at, at its largest resolution."""
        (budget,) = self.processor.fill_budgets(self.processor.resolve_scales(None, 1), [Tiles()])
        return budget.setting

    def plain(self, text: str) -> str:
        """Text of a benchmark, fenced so that control tokens in it (`<|im_end|>`, `<image>`) are
        read as the characters they
        are: they can neither end a turn nor claim an image. Training data are read the same way
            (m3/data/tokenized.py).
        """
        return fence(text, self._control_tokens)

    def question(
        self,
        messages: Sequence[dict[str, str]],
        pictures: Sequence[Picture],
        scale: int | str,
        decoding: Decoding,
        continuation: str | None = None,
    ) -> Question:
        """Puts `messages` (role, content with the image token where each picture stands) into the
        chat template.

        Other control tokens in them are text; an image token that is text must come fenced
        (`plain`).
        """
        fenced = [
            chat_message | {"content": self._fenced(chat_message["content"])}
            for chat_message in messages
        ]
        prompt_text = self.processor.apply_chat_template(
            fenced, tokenize=False, add_generation_prompt=True
        )
        image_count = FENCED.sub("", prompt_text).count(self.processor.image_token)
        if image_count != len(pictures):
            raise ValueError(
                f"the prompt has {image_count} {self.processor.image_token} but {len(pictures)} "
                f"images: each image needs exactly one; prompt: {prompt_text[:200]!r}"
            )
        return Question(prompt_text, tuple(pictures), scale, decoding, continuation)

    def _fenced(self, message_text: str) -> str:
        """Every control token that is not fenced yet, but for the image token."""
        pieces, text_position = [], 0
        for match in [*FENCED.finditer(message_text), None]:
            between = message_text[text_position : None if match is None else match.start()]
            pieces.append(
                self.processor.image_token.join(
                    map(self.plain, between.split(self.processor.image_token))
                )
            )
            if match is not None:
                pieces.append(match[0])
                text_position = match.end()
        return "".join(pieces)

    def answer(
        self,
        questions: Sequence[Question],
        batch_size: int,
        wanted_questions: Sequence[bool] | None = None,
    ) -> Iterator[list[tuple[int, Reply]]]:
        """Plans and runs batches; yields (index into `questions`, reply) batch by batch.

        Rows of one batch share the decoding and are of similar length; `batch_size` rows at the
        largest trained scale set the number of tokens a batch may have, so batches of short rows
        have up to eight times as many rows. Batches without a wanted row are left out. The plan
        depends on `questions` alone: after a restart that wants the rest, a question runs in the
        same batch as it would have, and gets the same answer to the last bit.
        """
        questions = self.settle(questions, batch_size)
        question_rows = [self._row(question) for question in questions]
        seeds = question_seeds(questions)
        self.pictures.see(
            [view.whole for question in questions for view in question.views], batch_size
        )
        for batch in self._plan(questions, question_rows, batch_size):
            if wanted_questions is not None and not any(wanted_questions[i] for i in batch):
                continue
            replies = self._run(
                [questions[i] for i in batch],
                [question_rows[i] for i in batch],
                [seeds[i] for i in batch],
            )
            yield list(zip(batch, replies, strict=True))

    def settle(self, questions: Sequence[Question], batch_size: int) -> list[Question]:
        """The questions with the budgets of their pictures; choices are made (settling.py)."""
        return settle(questions, self.pictures, batch_size)

    def _row(self, question: Question) -> Row:
        tokenizer, config = self.processor.tokenizer, self.model.config
        ids = encode_fenced(tokenizer, question.text)
        tiles = [self.pictures.tiles(view) for view in question.views]
        token_counts = self.processor.counts(self._read_budgets(question), tiles)
        kept_tokens = sum(self.processor.counts(question.budgets, tiles))
        ids = expand_image_tokens(ids, config.image_token_id, token_counts)
        positions = config.text_config.max_position_embeddings
        if question.continuation is None:
            room = answer_room(
                len(ids),
                sum(token_counts),
                len(token_counts),
                positions,
                question.decoding.max_new_tokens,
            )
            return Row(ids, 0, sum(token_counts), kept_tokens, room)
        continuation = tokenizer(question.continuation, add_special_tokens=False)["input_ids"]
        if not continuation:
            raise ValueError(f"the continuation {question.continuation!r} has no token to score")
        answer_room(
            len(ids) + len(continuation) - 1, sum(token_counts), len(token_counts), positions, 1
        )
        return Row(ids + continuation, len(continuation), sum(token_counts), kept_tokens, 0)

    def _read_budgets(self, question: Question) -> list[Budget]:
        """The budgets at which the decoder is given the pictures: all tokens where it drops some
        itself.
        """
        if question.method == FASTV:
            return [Budget(self.processor.reachable_scales[-1])] * len(question.pictures)
        return question.budgets

    def _plan(
        self, questions: Sequence[Question], question_rows: Sequence[Row], batch_size: int
    ) -> list[list[int]]:
        config = self.model.config
        most_tokens = max(config.count(budget) for budget in config.nesting.ladder)
        room = batch_size * (most_tokens + ROOM_FOR_TEXT)
        alike_groups: dict[tuple[Decoding, bool, bool, bool, int], list[int]] = {}
        for question_index, question in enumerate(questions):
            alike = (
                question.decoding,
                question.continuation is None,
                question.method == FASTV,
                question.is_chosen,
                question_rows[question_index].new_tokens,
            )
            alike_groups.setdefault(alike, []).append(question_index)
        batches: list[list[int]] = []
        for question_group in alike_groups.values():
            batch: list[int] = []
            # the longest first: it sets the width
            for question_index in sorted(question_group, key=lambda i: -len(question_rows[i].ids)):
                if batch and (
                    len(question_rows[batch[0]].ids) * (len(batch) + 1) > room
                    or len(batch) >= 8 * batch_size
                ):
                    batches.append(batch)
                    batch = []
                batch.append(question_index)
            batches.append(batch)
        return batches

    @torch.no_grad()
    def _run(
        self, questions: Sequence[Question], batch_rows: Sequence[Row], seeds: Sequence[int]
    ) -> list[Reply]:
        started = time.perf_counter()
        inputs = self._inputs(questions, batch_rows)
        is_pruned = questions[0].method == FASTV and "image_features" in inputs
        is_routed = (
            any(question.is_routed for question in questions) and not is_pruned
        )  # it routes tokens it has dropped
        recorder = recording(self.model, len(batch_rows)) if is_routed else nullcontext()
        reducing = self._reducing_by_choice() if questions[0].is_chosen else nullcontext()
        pruning = self._pruning(inputs, batch_rows) if is_pruned else nullcontext()
        with reducing, pruning, recorder as recorded:
            if questions[0].continuation is None:
                answer_texts, answer_lengths, row_confidences = self._generate(
                    inputs, questions[0].decoding, batch_rows[0].new_tokens, seeds
                )
                scores: list[tuple[float, bool] | None] = [None] * len(batch_rows)
            else:
                scores = self._score(inputs, batch_rows)
                answer_texts, answer_lengths, row_confidences = (
                    [""] * len(batch_rows),
                    [batch_row.continuation for batch_row in batch_rows],
                    [None] * len(batch_rows),
                )
        seconds = (time.perf_counter() - started) / len(batch_rows)
        routings = self._routings(recorded, inputs, questions, batch_rows)
        replies = []
        for batch_row, answer_text, score, answer_length, confidence, routing in zip(
            batch_rows, answer_texts, scores, answer_lengths, row_confidences, routings, strict=True
        ):
            in_words = len(batch_row.ids) - batch_row.continuation - batch_row.visual
            layers = self.model.config.text_config.num_hidden_layers
            visual = (
                mean_visual_tokens(batch_row.visual, batch_row.kept, layers)
                if is_pruned
                else batch_row.visual
            )
            replies.append(
                Reply(
                    answer_text,
                    score,
                    visual,
                    in_words,
                    answer_length,
                    seconds,
                    confidence,
                    routing,
                )
            )
        return replies

    def _reducing_by_choice(self) -> AbstractContextManager[None]:
        config = self.model.config
        width = config.text_config.hidden_size
        reducer = ChosenTokenReducer(NoOptions(), config.reader.nesting, config.grid, width)
        return self.model.model.reducing_by(reducer)

    def _inputs(
        self, questions: Sequence[Question], batch_rows: Sequence[Row]
    ) -> dict[str, Tensor]:
        """Rows padded on the left, each distinct picture once, and for every span its scale and
        picture.
        """
        device, longest = self.model.device, max(len(batch_row.ids) for batch_row in batch_rows)
        pad = self.processor.tokenizer.pad_token_id
        ids = torch.tensor(
            [[pad] * (longest - len(batch_row.ids)) + batch_row.ids for batch_row in batch_rows]
        )
        mask = torch.tensor(
            [
                [0] * (longest - len(batch_row.ids)) + [1] * len(batch_row.ids)
                for batch_row in batch_rows
            ]
        )
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        views = {view.key: view for question in questions for view in question.views}
        if not views:
            return inputs
        view_indices = {view_key: image_index for image_index, view_key in enumerate(views)}
        spans = [
            (budget.tokens, view_indices[v.key])
            for question in questions
            for v, budget in zip(question.views, self._read_budgets(question), strict=True)
        ]
        scales, image_index = zip(*spans, strict=True)
        inputs |= self.pictures.inputs(list(views.values()))
        inputs["image_scales"] = torch.tensor(scales, device=device)
        inputs["image_index"] = torch.tensor(image_index, device=device)
        return inputs

    def _routings(
        self,
        recorded: Recorded | None,
        inputs: dict[str, Tensor],
        questions: Sequence[Question],
        batch_rows: Sequence[Row],
    ) -> list[str | None]:
        """Expert routing of the questions that ask for it; none of a dense decoder.

        Continuations are no part of a prompt.
        """
        top_k = self.model.model.router_top_k
        if recorded is None or top_k is None:
            return [None] * len(batch_rows)
        ids = inputs["input_ids"]
        ends = torch.tensor(
            [ids.shape[1] - batch_row.continuation for batch_row in batch_rows], device=ids.device
        )
        is_prompt = inputs["attention_mask"].bool() & (
            torch.arange(ids.shape[1], device=ids.device) < ends[:, None]
        )
        is_visual = ids == self.model.config.image_token_id
        row_routings = recorded.routings(
            torch.stack([is_prompt & is_visual, is_prompt & ~is_visual]), top_k
        )
        return [
            row_routing.encoded() if question.is_routed else None
            for row_routing, question in zip(row_routings, questions, strict=True)
        ]

    def _pruning(
        self, inputs: dict[str, Tensor], batch_rows: Sequence[Row]
    ) -> AbstractContextManager[Pruned]:
        """The decoder drops visual tokens while the block runs
        (m3/evaluation/token_reduction/fastv.py).
        """
        ids = inputs["input_ids"]
        keep = torch.tensor([batch_row.kept for batch_row in batch_rows])
        last_places = torch.tensor(
            [ids.shape[1] - batch_row.continuation - 1 for batch_row in batch_rows]
        )
        return pruning(self.model, ids == self.model.config.image_token_id, keep, last_places)

    def _generate(
        self, inputs: dict[str, Tensor], decoding: Decoding, new_tokens: int, seeds: Sequence[int]
    ) -> tuple[list[str], list[int], Sequence[float | None]]:
        """Texts, numbers of tokens, and confidences: None by beams, whose rows change places on
        their way.
        """
        tokenizer, chosen_tokens = self.processor.tokenizer, ChosenTokens()
        stops = decoding.stop_ids(tokenizer, end_token_ids(self.model, tokenizer))
        recorded = LogitsProcessorList([chosen_tokens] if decoding.num_beams == 1 else [])
        arguments = decoding.arguments() | {"max_new_tokens": new_tokens}
        if decoding.do_sample and recorded:
            recorded.append(SeededSampling(decoding, seeds))
            arguments = replace(decoding, do_sample=False).arguments() | {
                "max_new_tokens": new_tokens
            }
        with token_ids_alone(self.model), torch.random.fork_rng():
            torch.manual_seed(seeds[0])  # of beams that sample, whose rows change places
            output = self.model.generate(  # pyright: ignore[reportAttributeAccessIssue] (it binds to a protocol)
                **inputs,
                **arguments,
                eos_token_id=stops,
                pad_token_id=tokenizer.pad_token_id,
                logits_processor=recorded,
            )
        generated = output[:, inputs["input_ids"].shape[1] :]
        answer_texts, answer_lengths = [], []
        for generated_row in generated.tolist():
            answer_end = decoding.end(generated_row, tokenizer, stops)
            answer_texts.append(
                decoding.cut(tokenizer.decode(generated_row[:answer_end], skip_special_tokens=True))
            )
            answer_lengths.append(min(answer_end + 1, len(generated_row)))
        return (
            answer_texts,
            answer_lengths,
            chosen_tokens.confidences(generated, answer_lengths)
            if recorded
            else [None] * len(answer_texts),
        )

    def _score(
        self, inputs: dict[str, Tensor], batch_rows: Sequence[Row]
    ) -> list[tuple[float, bool] | None]:
        """Log-likelihood of the last `row.continuation` ids of each row, given all before them."""
        keep = max(batch_row.continuation for batch_row in batch_rows) + 1
        # positions are counted without padding, which decoders of learned positions do not do by
        # themselves
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        logits = (
            self.model(**inputs, position_ids=positions, logits_to_keep=keep)
            .logits[:, :-1]
            .float()
            .log_softmax(-1)
        )
        targets: Int[Tensor, "b k"] = inputs["input_ids"][:, 1 - keep :]
        target_scores = logits.gather(-1, targets[..., None])[..., 0]
        greedy = logits.argmax(-1) == targets
        return [
            (
                float(target_scores[i, -batch_row.continuation :].sum()),
                bool(greedy[i, -batch_row.continuation :].all()),
            )
            for i, batch_row in enumerate(batch_rows)
        ]
