"""Typed recipe -> transformers' TrainingArguments, in one place."""

from collections.abc import Sequence

import torch
from transformers import TrainingArguments

from m3.optional import require
from m3.training.loop.distributed import start_deepspeed, world
from m3.training.loop.run_folder import RunFolder
from m3.training.recipe.sections import Hardware, Optimiser, Schedule


def training_arguments(
    run: RunFolder,
    schedule: Schedule,
    optimiser: Optimiser,
    hardware: Hardware,
    learning_rate: float,
    workers: int,
    steps: int,
    report_to: Sequence[str] = (),
) -> TrainingArguments:
    """Everything that Trainer decides, from the recipe; data come in the order of the data set,
    which is shuffled.

    To be made before the model is loaded: under ZeRO-3 `from_pretrained` shards what it loads, and
    learns of it here.

    Raises:
        ModuleNotFoundError: a package of `report_to` is not installed.
    """
    for package in report_to:
        require(package)
    is_configured = hardware.deepspeed is not None and start_deepspeed(hardware.deepspeed)
    return TrainingArguments(
        output_dir=str(run.checkpoints),
        per_device_train_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.accumulate(world().size),
        max_steps=steps,
        train_sampling_strategy="sequential",
        learning_rate=learning_rate,
        weight_decay=optimiser.weight_decay,
        adam_beta2=optimiser.beta2,
        max_grad_norm=optimiser.max_grad_norm,
        warmup_steps=optimiser.warmup,
        lr_scheduler_type=optimiser.schedule,
        logging_steps=schedule.log_every,
        logging_nan_inf_filter=False,  # it would log the mean of the losses before instead
        save_strategy="steps",
        save_steps=schedule.save_every,
        save_total_limit=schedule.keep_checkpoints,
        seed=schedule.seed,
        data_seed=schedule.seed,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        bf16=hardware.precision == "bfloat16",
        use_cpu=not torch.accelerator.is_available() and not is_configured,
        accelerator_config={"use_configured_state": True} if is_configured else None,
        deepspeed=hardware.deepspeed,
        activation_checkpointing=hardware.activation_checkpointing,
        report_to=list(report_to) or "none",
    )
