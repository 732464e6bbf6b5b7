"""Every row of the connectors: grid, training step, initialisation, files, settings."""

from pathlib import Path

import pytest
import tiny_models
import torch
from tiny_models import batch, make_config, make_connector, make_model, prompt

from m3.model import M3Config, M3ForConditionalGeneration
from m3.model.connectors import CONNECTORS, OwnParameters, connector_config

GRIDS = {
    "mlp2x_gelu": (12, 12),
    "linear": (12, 12),
    "pixel_shuffle": (6, 6),
    "resampler": 36,
    "aria_projector": 36,
}


def test_every_connector_is_tested() -> None:
    assert set(CONNECTORS) == set(tiny_models.CONNECTORS) == set(GRIDS)


@pytest.mark.parametrize("kind", CONNECTORS)
def test_tokens_stand_on_the_grid_and_train(kind: str) -> None:
    model = make_model(**make_connector(kind)).train()
    assert model.config.grid == GRIDS[kind]
    pixels = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    tokens = model.get_image_features(pixels).pooler_output
    number = GRIDS[kind] if isinstance(GRIDS[kind], int) else GRIDS[kind][0] * GRIDS[kind][1]
    assert tokens.shape == (2, number, 32)
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3 * tokens.abs().max()
    inputs = batch([prompt(9, 10), prompt(1, 11)])
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] < 5, -100)
    loss = model(
        **inputs, pixel_values=pixels, image_scales=torch.tensor([9, 1]), labels=labels
    ).loss
    loss.backward()
    for name, parameter in model.model.connector.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    optimiser = torch.optim.SGD(model.model.connector.parameters(), lr=0.1)
    optimiser.step()
    after = model(
        **inputs, pixel_values=pixels, image_scales=torch.tensor([9, 1]), labels=labels
    ).loss
    assert after < loss


@pytest.mark.parametrize("kind", CONNECTORS)
def test_a_batch_of_text_runs_the_connector(kind: str) -> None:
    model = make_model(**make_connector(kind)).train()
    inputs = batch([[5, 6, 7], [8, 9]])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in model.model.connector.parameters())


@pytest.mark.parametrize("kind", CONNECTORS)
def test_every_parameter_is_drawn(kind: str) -> None:
    """A parameter that nothing draws is whatever memory held; here NaN."""
    torch.manual_seed(0)
    model = M3ForConditionalGeneration(make_config(**make_connector(kind)))
    connector = model.model.connector
    with torch.no_grad():
        for module in connector.modules():
            if isinstance(module, OwnParameters):
                for parameter in module.parameters(recurse=False):
                    parameter.fill_(torch.nan)
    connector.apply(model._init_weights)
    for name, parameter in connector.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.abs().max() < 0.2 or "norm" in name, name


@pytest.mark.parametrize("kind", CONNECTORS)
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    model = make_model(**make_connector(kind))
    model.save_pretrained(tmp_path)
    loaded = M3ForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.connector == model.config.connector
    assert loaded.config.grid == model.config.grid
    features = torch.randn(2, 144, 24)
    assert torch.equal(loaded.model.connector(features), model.model.connector(features))


def test_settings_that_a_connector_does_not_have_are_ignored_at_their_defaults_alone() -> None:
    every = {"kind": "linear", "num_queries": 64, "num_heads": 8, "patch_queries": []}
    assert connector_config(every) == connector_config({"kind": "linear"})
    assert connector_config({}).kind == "mlp2x_gelu"
    with pytest.raises(ValueError, match="linear has no num_queries; its settings are kind"):
        connector_config(every | {"num_queries": 36})


@pytest.mark.parametrize("name", ["m3-tiny", "m3-tiny-base"])
def test_shipped_configurations_load(name: str) -> None:
    config = M3Config.from_pretrained(Path(__file__).parents[2] / "playground" / name)
    assert (config.connector.kind, config.grid) == ("mlp2x_gelu", (12, 12))
