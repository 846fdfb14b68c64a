"""quantize_model: every linear layer in 4 bits, in place, one at a time."""

import weakref

import pytest
import torch
from llmfast.kernels import NF4Linear, dequantize_nf4
from torch import nn

from llmfast.models import quantize
from llmfast.models.quantize import quantize_model


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 64)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(64, 96), nn.SiLU(), nn.Linear(96, 64)) for _ in range(3))
        self.layers.append(self.layers[0])  # used twice
        self.lm_head = nn.Linear(64, 11, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + layer(x)
        return self.lm_head(x)


def test_layers_are_replaced_in_place_and_compute_nearly_the_same():
    model, tokens = Model(), torch.arange(11)[None]
    weights = {name: layer.weight.detach() for name, layer in model.named_modules() if type(layer) is nn.Linear}
    before = model(tokens)
    assert quantize_model(model) is model
    quantized = {name: layer for name, layer in model.named_modules() if isinstance(layer, NF4Linear)}
    assert set(quantized) == set(weights) - {"lm_head"}
    for name, layer in quantized.items():
        assert (dequantize_nf4(layer.quantized) - weights[name]).abs().max() < 0.16 * weights[name].abs().max()
    assert model.layers[3] is model.layers[0]
    assert type(model.lm_head) is nn.Linear
    after = model(tokens)
    assert 0 < (after - before).norm() / before.norm() < 0.2
    after.sum().backward()
    assert model.embedding.weight.grad is not None


def test_each_weight_is_gone_before_the_next_is_quantized(monkeypatch):
    """The trap: a list of the layers to come keeps all of the old weights until the end."""
    model = Model()
    alive = [weakref.ref(layer.weight) for layer in model.layers[:3].modules() if type(layer) is nn.Linear]
    counts = []

    def counted(linear, *options):
        counts.append(sum(weight() is not None for weight in alive))
        return NF4Linear.from_tensor(quantize_nf4(linear.weight, *options), linear.bias)

    quantize_nf4 = quantize.NF4Linear.from_linear.__globals__["quantize_nf4"]
    monkeypatch.setattr(quantize.NF4Linear, "from_linear", counted)
    quantize_model(model)
    assert counts == [6, 5, 4, 3, 2, 1]


def test_skipping_by_full_name_or_by_its_end():
    model = Model()
    quantize_model(model, skip=("lm_head", "layers.1.0", "2.2"))
    names = [name for name, layer in model.named_modules() if isinstance(layer, NF4Linear)]
    assert names == ["layers.0.0", "layers.0.2", "layers.1.2", "layers.2.0"]
    with pytest.raises(ValueError, match="skip names 'q_proj', but no linear layer is called so"):
        quantize_model(Model(), skip=("q_proj",))
    with pytest.raises(ValueError, match="no linear layer to quantize"):
        quantize_model(nn.Sequential(nn.ReLU()))


def test_on_the_meta_device_then_filled_from_a_checkpoint():
    full = quantize_model(Model())
    with torch.device("meta"):
        empty = Model()
    quantize_model(empty)
    empty.load_state_dict(full.state_dict(), assign=True)
    tokens = torch.arange(11)[None]
    assert torch.equal(empty(tokens), full(tokens))
