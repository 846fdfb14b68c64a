"""Mixture of experts: equal to a plain loop, balanced by either method, counted."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from llmfast.models.config import DecoderConfig, ExpertsConfig
from llmfast.models.decoder import Decoder
from llmfast.models.experts import MixtureOfExperts
from llmfast.models.grouped import grouped_linear

pytestmark = pytest.mark.numeric

CONFIG = DecoderConfig(
    vocab_size=97,
    width=16,
    layers=2,
    heads=2,
    context=32,
    ff_width=24,
    experts=ExpertsConfig(count=5, active=2, shared_width=8),
)


def layer(**experts) -> MixtureOfExperts:
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, experts=dataclasses.replace(CONFIG.experts, **experts))
    module = MixtureOfExperts(config).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def one_token(module: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    """The definition, for one token x (E,)."""
    config = module.router.config
    experts = module.experts
    logits = module.router.weight @ x + (module.router.logit_bias if config.biases else 0)
    scores = logits.softmax(0) if config.score == "softmax" else logits.sigmoid()
    chosen = (scores + module.router.bias).topk(config.active).indices
    weights = scores[chosen] / (scores[chosen].sum() if config.normalize else 1)

    def expert(i, x):
        first, last = (experts.gate_up_bias[i], experts.down_bias[i]) if config.biases else (0, 0)
        return experts.down[i] @ silu_gated(experts.gate_up[i] @ x + first) + last

    out = sum(
        expert(i, weight * x) if config.scale_input else weight * expert(i, x)
        for weight, i in zip(weights, chosen.tolist(), strict=True)
    )
    gate = 1 if module.shared_gate is None else (module.shared_gate.weight[0] @ x).sigmoid()
    return out + gate * (module.shared.down.weight @ silu_gated(module.shared.gate_up.weight @ x))


def silu_gated(packed: torch.Tensor) -> torch.Tensor:
    gate, up = packed.chunk(2)
    return F.silu(gate) * up


BIASES = {"biases": True}
INPUT = {"scale_input": True, "score": "sigmoid", "normalize": False}


@pytest.mark.parametrize(
    "choices", [{}, {"score": "sigmoid"}, {"normalize": False}, {"active": 1}, {"shared_gate": True}, BIASES, INPUT]
)
def test_a_layer_is_what_the_definition_says_token_by_token(choices):
    module = layer(**choices)
    module.router.bias += torch.randn(5)
    x = torch.randn(2, 3, 16, dtype=torch.float64, requires_grad=True)
    out, routed = module(x)
    expected = torch.stack([one_token(module, token) for token in x.view(-1, 16)]).view(x.shape)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad(each, (x, *module.parameters()), grad) for each in (out, expected))
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted)
    assert routed.counts.sum() == 6 * module.router.config.active


def test_sigmoid_scores_that_are_all_1_do_not_hide_which_logit_is_the_largest():
    module = layer(score="sigmoid", active=1).float()
    module.router.weight.data = torch.eye(5, 16)
    chosen, weights, _ = module.router(20 + torch.randn(64, 16).abs())
    assert torch.equal(weights, torch.ones_like(weights))
    assert len(chosen.unique()) == 5


@pytest.mark.parametrize("sizes", [[3, 5, 4], [0, 12, 0], [12, 0, 0]])
def test_grouped_products_are_those_of_the_groups(sizes):
    x = torch.randn(12, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 6, 8, dtype=torch.float64, requires_grad=True)
    ends = torch.tensor(sizes).cumsum(0).to(torch.int32)
    grad = torch.randn(12, 6, dtype=torch.float64)
    expected = torch.cat([rows @ matrix.T for rows, matrix in zip(x.split(sizes), weight, strict=True)])
    found = grouped_linear(x, weight, ends)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(*(torch.autograd.grad(out, (x, weight), grad) for out in (found, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_pytorch_s_grouped_product_means_the_same():
    """What runs on a GPU in bfloat16; here on the CPU, where PyTorch has it too."""
    x, weight = torch.randn(12, 8), torch.randn(3, 16, 8)
    ends = torch.tensor([4, 4, 12], dtype=torch.int32)
    torch.testing.assert_close(F.grouped_mm(x, weight.transpose(1, 2), offs=ends), grouped_linear(x, weight, ends))


def test_the_router_decides_in_float32_under_autocast():
    module = layer().float()
    x = torch.randn(64, 16)
    with torch.autocast("cpu", torch.bfloat16):
        chosen, weights, _ = module.router(x.bfloat16())
    assert weights.dtype == torch.float32
    assert torch.equal(chosen, module.router(x.bfloat16().float())[0])


def crowded(**experts) -> Decoder:
    """A decoder whose routers all prefer the same experts at the start."""
    config = dataclasses.replace(CONFIG, experts=ExpertsConfig(count=4, active=1, **experts))
    model = Decoder(config, generator=torch.Generator().manual_seed(0))
    for block in model.blocks:
        block.feed_forward.router.weight.data[0] = block.feed_forward.router.weight.data[1] * 1.5
    return model


def train(model: Decoder, steps: int) -> list[float]:
    """Worst violation of balance after each step."""
    tokens = torch.randint(97, (4, 32), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    found = []
    for _ in range(steps):
        model(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(model.router_statistics()["max_violation"].max().item())
        model.balance_experts()
    return found


@pytest.mark.parametrize("method", [{"auxiliary_weight": 0.1}, {"auxiliary_weight": 0.0, "bias_rate": 0.02}])
def test_balancing_evens_the_load(method):
    unbalanced = train(crowded(auxiliary_weight=0.0), 60)
    balanced = train(crowded(**method), 60)
    assert balanced[-1] < 0.7 * unbalanced[-1]


def test_the_bias_moves_no_gradient_and_no_weight_of_an_expert():
    model = crowded(auxiliary_weight=0.0, bias_rate=0.5)
    train(model, 1)
    router = model.blocks[0].feed_forward.router
    assert set(router.bias.abs().tolist()) <= {0.0, 0.5}
    assert router.bias.abs().sum() > 0
    x = torch.randn(8, 16)
    _, weights, _ = router(x)
    torch.testing.assert_close(weights, torch.ones_like(weights))  # one expert, normalised: the bias is not in it


def test_statistics_count_each_choice_once_whatever_is_recomputed():
    tokens = torch.randint(97, (2, 32), generator=torch.Generator().manual_seed(1))
    loads = {}
    for choice in ("none", "selective", "full"):
        model = crowded()
        model.activation_checkpointing = choice
        model(tokens, tokens).backward()
        assert model.expert_counts.sum(-1).tolist() == [64, 64]
        loads[choice] = model.router_statistics()["load"]
        torch.testing.assert_close(loads[choice].sum(-1), torch.ones(2))
    assert torch.equal(loads["none"], loads["full"])
    model.balance_experts()
    assert model.expert_counts.sum() == 0


def test_a_model_without_experts_has_no_statistics():
    model = Decoder(dataclasses.replace(CONFIG, experts=ExpertsConfig()))
    assert model.router_statistics() == {}
    model.balance_experts()


def test_evaluation_is_the_plain_loss():
    model = crowded(auxiliary_weight=10.0, z_loss_weight=1.0)
    tokens = torch.randint(97, (2, 32))
    trained = model(tokens, tokens)
    plain = model.eval()(tokens, tokens)
    assert trained > plain + 1
    torch.testing.assert_close(plain, F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()))
