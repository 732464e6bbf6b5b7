"""`hardware.compile`: the layers that repeat are compiled, and compute as without; a machine
without a compiler is told so.
"""

from pathlib import Path

import pytest
import torch
from tiny_models import make_model
from torch._dynamo.utils import counters

from m3.data.collate import Collator
from m3.training.command import main
from m3.training.loop.run_folder import RunFolder
from m3.training.setup.compiling import compile_layers

ZERO3 = Path(__file__).resolve().parents[2] / "scripts" / "deepspeed" / "zero3.json"


@pytest.mark.parametrize("decoder", ["aria_text", "llama"])
def test_the_layers_of_tower_and_decoder_are_compiled_and_keep_their_names(decoder: str) -> None:
    model = make_model(decoder=decoder)
    names = list(model.state_dict())
    compile_layers(model)
    compiled = [
        name for name, module in model.named_modules() if module._compiled_call_impl is not None
    ]
    stacks = ("model.vision_tower.encoder.layers", "model.language_model.layers")
    assert compiled == [f"{stack}.{number}" for stack in stacks for number in (0, 1)]
    assert list(model.state_dict()) == names


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["aria_text", "llama"])
def test_compiled_layers_compute_the_same_at_any_length(
    decoder: str, make_tuned, processor, samples, text_sample
) -> None:
    """Losses and gradients within 1e-5, and no more graphs for more lengths.

    Traced and differentiated as
    for inductor, without its kernels, which take two minutes to compile."""
    batches = [
        Collator(processor, scales=(1, 9, 36), pack_length=512, pad_to_multiple_of=multiple)(chosen)
        for multiple in (8, 40, 72)
        for chosen in (samples[:2], [text_sample])
    ]
    assert len({batch["input_ids"].shape for batch in batches}) == len(batches)
    found: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    graphs: list[int] = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = make_tuned(decoder).train()
        if compiled:
            torch._dynamo.reset()
            counters.clear()
            compile_layers(model, backend="aot_eager")
        losses: list[torch.Tensor] = []
        for batch in batches:
            losses.append(model(**batch).loss)
            losses[-1].backward()
            graphs.append(counters["stats"]["unique_graphs"])
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((torch.stack(losses).detach(), grads))
    (plain, gradients), (loss, others) = found
    assert torch.allclose(loss, plain, rtol=1e-5)
    assert gradients.keys() == others.keys()
    assert all(torch.allclose(gradients[name], others[name], atol=1e-5) for name in gradients)
    assert 0 < graphs[-5] == graphs[-1]


@pytest.mark.slow
def test_without_a_compiler_the_run_does_not_begin(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/nowhere/g++"))
    torch._dynamo.reset()
    with pytest.raises(
        ValueError,
        match=r"makes no kernel for cpu .*InvalidCxxCompiler.*it needs a C\+\+ "
        r"compiler \(g\+\+",
    ):
        main([str(recipe), "hardware.compile=true"])
    assert not RunFolder(recipe.parent / "run").read_metrics()


def test_zero3_is_refused_by_the_plan(recipe: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"hardware.compile: ZeRO-3 fetches the weights of a layer "
        r".*ZERO=zero2",
    ):
        main([str(recipe), "hardware.compile=true", f"hardware.deepspeed={ZERO3}", "--dry-run"])
