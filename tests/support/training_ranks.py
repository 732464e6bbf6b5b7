"""A worker that the tests launch: trains with text alone on even ranks and images on odd ones; then
says what it left.

python training_ranks.py FOLDER CHECKPOINT DATA BATCHES_AT_A_TIME [DEEPSPEED_CONFIG]
"""

import sys

import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from m3.data.collate import Collator
from m3.data.recipe import Source, open_source
from m3.model import M3Config
from m3.training.loop.distributed import gather_parts_at_once
from m3.training.loop.hf_arguments import training_arguments
from m3.training.loop.router_load import RouterLoad
from m3.training.loop.run_folder import RunFolder
from m3.training.loop.step_metrics import measure
from m3.training.loop.trainer import RunTrainer
from m3.training.recipe.sections import Hardware, Optimiser, Parts, Schedule
from m3.training.setup.build import load_checkpoint
from m3.training.setup.parameter_groups import apply_parts
from m3.training.setup.resolved import exchange_reducer

SCALES = ("1@8", "4@16", 36)
STEPS = 4


def main(
    folder: str, checkpoint: str, data: str, at_a_time: str, config: str | None = None
) -> None:
    source = open_source(Source(path=data))
    samples = [source[number] for number in range(len(source))]
    texts, pictures = ([s for s in samples if bool(s.images) == shown] for shown in (False, True))
    order = [
        sample
        for n in range(STEPS)
        for sample in (texts[n % len(texts)], pictures[n % len(pictures)])
    ]
    run = RunFolder(folder)
    schedule = Schedule(
        batch_size=1, accumulation=int(at_a_time), steps=STEPS, log_every=1, save_every=100
    )
    arguments = training_arguments(
        run, schedule, Optimiser(), Hardware(deepspeed=config), 1e-3, 0, STEPS
    )
    torch.manual_seed(0)  # the new reducer is drawn
    model_config = exchange_reducer(
        M3Config.from_pretrained(checkpoint), {"kind": "attention_pool"}
    )
    model, processor = load_checkpoint(checkpoint, SCALES, config=model_config, draws_reducer=True)
    rates = apply_parts(
        model, Parts(vision_tower="frozen", connector=1e-3, reducer=1e-2, decoder=1e-3)
    )
    if is_deepspeed_zero3_enabled():
        gather_parts_at_once(model)
    trainer = RunTrainer(
        run=run,
        measure=measure,
        rates=rates,
        router=RouterLoad(len(model.model.routers), 4, arguments.device),
        model=model,
        args=arguments,
        train_dataset=order,
        data_collator=Collator(processor, scales=SCALES, pack_length=256),
        processing_class=processor,
    )
    trainer.run_to_end()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
