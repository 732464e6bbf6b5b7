"""Answers questions about images, many at a time, each at its own number of visual tokens.

In:  `Question`s: the text after the chat template with one image token per image, the images, the
     scale, and either how to decode or a continuation to score.
Way: each distinct image -> processor -> tower -> connector, once (picture_cache.py);
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

from m3.digest import digest, digest_files
from m3.evaluation.answering.confidence import ChosenTokens
from m3.evaluation.answering.decoding import Decoding
from m3.evaluation.answering.expert_routing import Recorded, recording
from m3.evaluation.answering.feature_cache import PictureCache
from m3.evaluation.answering.questions import Picture, Question, Reply
from m3.evaluation.answering.seeded_sampling import SeededSampling, question_seeds
from m3.evaluation.token_reduction.fastv import Pruned, mean_visual_tokens, pruning
from m3.evaluation.token_reduction.table import FASTV, ChosenTokenReducer
from m3.inference.generation import answer_room, end_token_ids, token_ids_alone, warn_of_settings
from m3.model import M3ForConditionalGeneration
from m3.model.reducers import NoOptions
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
        folder = (
            Path(pretrained) if Path(pretrained).is_dir() else Path(snapshot_download(pretrained))
        )
        model = M3ForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention
        )
        processor = M3Processor.from_pretrained(folder)
        warn_of_settings(model, folder)
        files = [
            path for path in folder.iterdir() if path.is_file() and path.suffix in WEIGHT_SUFFIXES
        ]
        weights = digest([digest_files(files, folder), str(model.dtype)])
        model.to(torch.device(device))  # pyright: ignore[reportArgumentType] (transformers wraps `to` without its types)
        return cls(model, processor, weights)

    @property
    def default_scale(self) -> int:
        """The largest scale the model was trained at."""
        return self.model.config.nesting.trained_scales[-1]

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
        scale: int,
        decoding: Decoding,
        continuation: str | None = None,
    ) -> Question:
        """Puts `messages` (role, content with the image token where each picture stands) into the
        chat template.

        Other control tokens in them are text; an image token that is text must come fenced
        (`plain`).
        """
        fenced = [message | {"content": self._fenced(message["content"])} for message in messages]
        text = self.processor.apply_chat_template(
            fenced, tokenize=False, add_generation_prompt=True
        )
        found = FENCED.sub("", text).count(self.processor.image_token)
        if found != len(pictures):
            raise ValueError(
                f"the prompt has {found} {self.processor.image_token} but {len(pictures)} images: "
                "each image needs exactly "
                f"one; prompt: {text[:200]!r}"
            )
        return Question(text, tuple(pictures), scale, decoding, continuation)

    def _fenced(self, content: str) -> str:
        """Every control token that is not fenced yet, but for the image token."""
        pieces, at = [], 0
        for match in [*FENCED.finditer(content), None]:
            between = content[at : None if match is None else match.start()]
            pieces.append(
                self.processor.image_token.join(
                    map(self.plain, between.split(self.processor.image_token))
                )
            )
            if match is not None:
                pieces.append(match[0])
                at = match.end()
        return "".join(pieces)

    def answer(
        self, questions: Sequence[Question], batch_size: int, wanted: Sequence[bool] | None = None
    ) -> Iterator[list[tuple[int, Reply]]]:
        """Plans and runs batches; yields (index into `questions`, reply) batch by batch.

        Rows of one batch share the decoding and are of similar length; `batch_size` rows at the
        largest trained scale set the number of tokens a batch may have, so batches of short rows
        have up to eight times as many rows. Batches without a wanted row are left out. The plan
        depends on `questions` alone: after a restart that wants the rest, a question runs in the
        same batch as it would have, and gets the same answer to the last bit.
        """
        rows = [self._row(question) for question in questions]
        seeds = question_seeds(questions)
        self.pictures.see(
            [picture for question in questions for picture in question.pictures], batch_size
        )
        for batch in self._plan(questions, rows, batch_size):
            if wanted is not None and not any(wanted[i] for i in batch):
                continue
            replies = self._run(
                [questions[i] for i in batch], [rows[i] for i in batch], [seeds[i] for i in batch]
            )
            yield list(zip(batch, replies, strict=True))

    def _row(self, question: Question) -> Row:
        tokenizer, config = self.processor.tokenizer, self.model.config
        ids = encode_fenced(tokenizer, question.text)
        tiles = [self.pictures.tiles(picture) for picture in question.pictures]
        counts = self.processor.counts([self._read_scale(question)] * len(tiles), tiles)
        kept = sum(self.processor.counts([question.scale] * len(tiles), tiles))
        ids = expand_image_tokens(ids, config.image_token_id, counts)
        positions = config.text_config.max_position_embeddings
        if question.continuation is None:
            room = answer_room(
                len(ids), sum(counts), len(counts), positions, question.decoding.max_new_tokens
            )
            return Row(ids, 0, sum(counts), kept, room)
        continuation = tokenizer(question.continuation, add_special_tokens=False)["input_ids"]
        if not continuation:
            raise ValueError(f"the continuation {question.continuation!r} has no token to score")
        answer_room(len(ids) + len(continuation) - 1, sum(counts), len(counts), positions, 1)
        return Row(ids + continuation, len(continuation), sum(counts), kept, 0)

    def _read_scale(self, question: Question) -> int:
        """The scale at which the decoder is given the pictures: all tokens where it drops some
        itself.
        """
        return self.processor.reachable_scales[-1] if question.method == FASTV else question.scale

    def _plan(
        self, questions: Sequence[Question], rows: Sequence[Row], batch_size: int
    ) -> list[list[int]]:
        reader = self.processor.reader
        budget = batch_size * (
            reader.count(self.default_scale, reader.tiling.largest()) + ROOM_FOR_TEXT
        )
        groups: dict[tuple[Decoding, bool, bool, bool, int], list[int]] = {}
        for index, question in enumerate(questions):
            alike = (
                question.decoding,
                question.continuation is None,
                question.method == FASTV,
                question.is_chosen,
                rows[index].new_tokens,
            )
            groups.setdefault(alike, []).append(index)
        batches: list[list[int]] = []
        for group in groups.values():
            batch: list[int] = []
            # the longest first: it sets the width
            for index in sorted(group, key=lambda i: -len(rows[i].ids)):
                if batch and (
                    len(rows[batch[0]].ids) * (len(batch) + 1) > budget
                    or len(batch) >= 8 * batch_size
                ):
                    batches.append(batch)
                    batch = []
                batch.append(index)
            batches.append(batch)
        return batches

    @torch.no_grad()
    def _run(
        self, questions: Sequence[Question], rows: Sequence[Row], seeds: Sequence[int]
    ) -> list[Reply]:
        started = time.perf_counter()
        inputs = self._inputs(questions, rows)
        is_pruned = questions[0].method == FASTV and "image_features" in inputs
        is_routed = (
            any(question.is_routed for question in questions) and not is_pruned
        )  # it routes tokens it has dropped
        recorder = recording(self.model, len(rows)) if is_routed else nullcontext()
        reducing = self._reducing_by_choice() if questions[0].is_chosen else nullcontext()
        pruning = self._pruning(inputs, rows) if is_pruned else nullcontext()
        with reducing, pruning, recorder as recorded:
            if questions[0].continuation is None:
                texts, lengths, sure = self._generate(
                    inputs, questions[0].decoding, rows[0].new_tokens, seeds
                )
                scores: list[tuple[float, bool] | None] = [None] * len(rows)
            else:
                scores = self._score(inputs, rows)
                texts, lengths, sure = (
                    [""] * len(rows),
                    [row.continuation for row in rows],
                    [None] * len(rows),
                )
        seconds = (time.perf_counter() - started) / len(rows)
        routings = self._routings(recorded, inputs, questions, rows)
        replies = []
        for row, text, score, length, confidence, routing in zip(
            rows, texts, scores, lengths, sure, routings, strict=True
        ):
            in_words = len(row.ids) - row.continuation - row.visual
            layers = self.model.config.text_config.num_hidden_layers
            visual = mean_visual_tokens(row.visual, row.kept, layers) if is_pruned else row.visual
            replies.append(
                Reply(text, score, visual, in_words, length, seconds, confidence, routing)
            )
        return replies

    def _reducing_by_choice(self) -> AbstractContextManager[None]:
        config = self.model.config
        width = config.text_config.hidden_size
        reducer = ChosenTokenReducer(NoOptions(), config.reader.nesting, config.grid, width)
        return self.model.model.reducing_by(reducer)

    def _inputs(self, questions: Sequence[Question], rows: Sequence[Row]) -> dict[str, Tensor]:
        """Rows padded on the left, each distinct picture once, and for every span its scale and
        picture.
        """
        device, longest = self.model.device, max(len(row.ids) for row in rows)
        pad = self.processor.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(row.ids)) + row.ids for row in rows])
        mask = torch.tensor([[0] * (longest - len(row.ids)) + [1] * len(row.ids) for row in rows])
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        views = {view.key: view for question in questions for view in question.views}
        if not views:
            return inputs
        place = {key: index for index, key in enumerate(views)}
        spans = [
            (self._read_scale(question), place[v.key])
            for question in questions
            for v in question.views
        ]
        scales, index = zip(*spans, strict=True)
        inputs |= self.pictures.inputs(list(views.values()))
        inputs["image_scales"] = torch.tensor(scales, device=device)
        inputs["image_index"] = torch.tensor(index, device=device)
        return inputs

    def _routings(
        self,
        recorded: Recorded | None,
        inputs: dict[str, Tensor],
        questions: Sequence[Question],
        rows: Sequence[Row],
    ) -> list[str | None]:
        """Of the questions that ask for it; none of a dense decoder.

        Continuations are no part of a prompt.
        """
        top_k = self.model.model.router_top_k
        if recorded is None or top_k is None:
            return [None] * len(rows)
        ids = inputs["input_ids"]
        ends = torch.tensor([ids.shape[1] - row.continuation for row in rows], device=ids.device)
        is_prompt = inputs["attention_mask"].bool() & (
            torch.arange(ids.shape[1], device=ids.device) < ends[:, None]
        )
        is_visual = ids == self.model.config.image_token_id
        found = recorded.routings(
            torch.stack([is_prompt & is_visual, is_prompt & ~is_visual]), top_k
        )
        return [
            one.encoded() if question.is_routed else None
            for one, question in zip(found, questions, strict=True)
        ]

    def _pruning(
        self, inputs: dict[str, Tensor], rows: Sequence[Row]
    ) -> AbstractContextManager[Pruned]:
        """The decoder drops visual tokens while the block runs
        (m3/evaluation/token_reduction/fastv.py).
        """
        ids = inputs["input_ids"]
        keep = torch.tensor([row.kept for row in rows])
        last = torch.tensor([ids.shape[1] - row.continuation - 1 for row in rows])
        return pruning(self.model, ids == self.model.config.image_token_id, keep, last)

    def _generate(
        self, inputs: dict[str, Tensor], decoding: Decoding, new_tokens: int, seeds: Sequence[int]
    ) -> tuple[list[str], list[int], Sequence[float | None]]:
        """Texts, numbers of tokens, and confidences: None by beams, whose rows change places on
        their way.
        """
        tokenizer, chosen = self.processor.tokenizer, ChosenTokens()
        stops = decoding.stop_ids(tokenizer, end_token_ids(self.model, tokenizer))
        recorded = LogitsProcessorList([chosen] if decoding.num_beams == 1 else [])
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
        texts, lengths = [], []
        for row in generated.tolist():
            end = decoding.end(row, tokenizer, stops)
            texts.append(decoding.cut(tokenizer.decode(row[:end], skip_special_tokens=True)))
            lengths.append(min(end + 1, len(row)))
        return (
            texts,
            lengths,
            chosen.confidences(generated, lengths) if recorded else [None] * len(texts),
        )

    def _score(
        self, inputs: dict[str, Tensor], rows: Sequence[Row]
    ) -> list[tuple[float, bool] | None]:
        """Log-likelihood of the last `row.continuation` ids of each row, given all before them."""
        keep = max(row.continuation for row in rows) + 1
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
        chosen = logits.gather(-1, targets[..., None])[..., 0]
        greedy = logits.argmax(-1) == targets
        return [
            (
                float(chosen[i, -row.continuation :].sum()),
                bool(greedy[i, -row.continuation :].all()),
            )
            for i, row in enumerate(rows)
        ]
