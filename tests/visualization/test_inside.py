"""What happens inside a model: the residual stream, lenses, losses, ablation, attribution, norms and neighbors, exact
for decoders and for models of transformers."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from looked_at import MODELS, decoder, model_named, prompt

from llmfast.models.evaluating import evaluating
from llmfast.visualization.ablation import ablate_each
from llmfast.visualization.attribution import input_x_gradient, integrated_gradients
from llmfast.visualization.lens import logit_lens
from llmfast.visualization.neighbors import embedding_neighbors
from llmfast.visualization.norms import activation_norms, outliers
from llmfast.visualization.predictions import next_tokens, token_losses
from llmfast.visualization.residual import ablated, residual_stream, with_embeddings
from llmfast.visualization.structure import (
    batch_of,
    embedding_of,
    heads_outputs_of,
    layers_of,
    logits_of,
    shape_of,
)
from llmfast.visualization.tuned_lens import TunedLens, fit_tuned_lens, load_tuned_lens, save_tuned_lens


@pytest.fixture(params=MODELS)
def model(request):
    return model_named(request.param)


@torch.no_grad()
def logits(model, tokens):
    with evaluating(model):
        return logits_of(model, batch_of(model, tokens))[0]


def hooks(model):
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


def test_the_last_state_reads_out_as_the_models_own_logits(model):
    """Traps: a final norm left out, a soft cap or scale after the head, dropout, a hook that stays."""
    tokens, before = prompt(), hooks(model)
    expected = logits(model, tokens)
    with torch.no_grad():
        stream = residual_stream(model, batch_of(model, tokens))
        assert torch.equal(stream.logits[0], expected)
        assert torch.equal(stream.read_out(stream.states[-1])[0], expected)
        assert not torch.equal(stream.read_out(stream.states[1])[0], expected)
    assert stream.states.shape == (shape_of(model).layers + 1, 1, len(tokens), embedding_of(model).weight.shape[1])
    assert torch.equal(logits(model, tokens), expected)
    assert hooks(model) == before
    assert all(module.training for module in model.modules())


def test_each_state_is_what_enters_the_next_layer():
    """Against the decoder's own blocks, computed one by one."""
    model, tokens = decoder(positions="learned", norm="layer"), prompt()
    with torch.no_grad():
        stream = residual_stream(model, batch_of(model, tokens))
        x, places = model.embed(torch.tensor([tokens]))
        for state, block in zip(stream.states, [*model.blocks, None], strict=True):
            assert torch.equal(state, x)
            assert torch.equal(stream.read_out(state), model.head(model.norm(x)))
            x = block(x, places)[0] if block is not None else x


def test_a_lens_reads_ranks_and_divergences_by_their_definitions():
    model, tokens = decoder(), prompt()
    reading = logit_lens(model, tokens, top=4)
    final = logits(model, tokens)
    targets = [*tokens[1:], int(final[-1].argmax())]
    assert reading.targets.tolist() == targets
    with torch.no_grad():
        stream = residual_stream(model, batch_of(model, tokens))
        for row, state in enumerate(stream.states):
            found = model.head(model.norm(state))[0]
            for place, target in enumerate(targets):
                order = found[place].argsort(descending=True).tolist()
                assert reading.ranks[row, place] == order.index(target) + 1
                assert reading.tokens[row, place].tolist() == order[:4]
            divergence = (final.softmax(-1) * (final.log_softmax(-1) - found.log_softmax(-1))).sum(-1)
            torch.testing.assert_close(reading.divergences[row], divergence, atol=1e-5, rtol=1e-4)
    assert reading.divergences[-1].abs().max() < 1e-6
    assert reading.ranks[-1, -1] == 1


def test_a_model_of_transformers_has_the_states_that_it_has_as_a_decoder(tmp_path):
    from llmfast.integrations.huggingface import load_huggingface

    model, tokens = model_named("gpt2"), prompt()
    model.save_pretrained(tmp_path)
    ours = load_huggingface(tmp_path)
    with torch.no_grad():
        theirs, mine = (residual_stream(each, batch_of(each, tokens)).states for each in (model, ours))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


# --- ablation -------------------------------------------------------------------------------------------------------


def test_ablating_nothing_changes_nothing(model):
    tokens, before = prompt(), hooks(model)
    expected = logits(model, tokens)
    with ablated(model):
        assert torch.equal(logits(model, tokens), expected)
    with ablated(model, heads=[(0, 1)], layers=[1]):
        assert not torch.equal(logits(model, tokens), expected)
    assert torch.equal(logits(model, tokens), expected)
    assert hooks(model) == before


def test_a_head_is_ablated_as_if_its_columns_of_the_projection_were_zero(model):
    """Traps: heads laid out otherwise than thought, the wrong layer's projection, the bias gone too."""
    tokens = prompt()
    with ablated(model, heads=[(1, 2), (0, 3)]):
        found = logits(model, tokens)
    for layer, head in ((1, 2), (0, 3)):
        weight = heads_outputs_of(model)[layer].weight
        is_transposed = type(heads_outputs_of(model)[layer]).__name__ == "Conv1D"
        width = weight.shape[0 if is_transposed else 1] // shape_of(model).heads
        columns = slice(head * width, (head + 1) * width)
        with torch.no_grad():
            (weight[columns] if is_transposed else weight[:, columns]).zero_()
    expected = logits(model, tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_layer_is_ablated_as_if_it_were_not_there():
    model, tokens = decoder(), prompt()
    with ablated(model, layers=[1]):
        found = logits(model, tokens)
    shorter = copy.deepcopy(model)
    del shorter.blocks[1]
    assert torch.equal(found, logits(shorter, tokens))


def test_changes_of_the_loss_are_those_of_each_ablation():
    model, tokens = decoder(), prompt()
    seen = []
    chosen = {"layers": [2, 0], "heads": [1, 3]}
    found = ablate_each(model, tokens, **chosen, report=lambda done, total: seen.append((done, total)))
    whole = float(token_losses(model, tokens).double().mean())
    assert found.loss == whole
    with ablated(model, heads=[(2, 3)]):
        assert float(found.heads[0, 1]) == float(token_losses(model, tokens).double().mean()) - whole
    with ablated(model, layers=[0]):
        assert float(found.layers[1]) == float(token_losses(model, tokens).double().mean()) - whole
    assert seen == [(number, 6) for number in range(1, 7)]


# --- losses ---------------------------------------------------------------------------------------------------------


def test_losses_are_those_of_the_logits(model):
    tokens = prompt()
    expected = F.cross_entropy(logits(model, tokens[:-1]), torch.tensor(tokens[1:]), reduction="none")
    torch.testing.assert_close(token_losses(model, tokens), expected, rtol=1e-4, atol=1e-5)
    places, probabilities = next_tokens(model, tokens, 7)
    softmax = logits(model, tokens)[-1].softmax(-1)
    assert places.tolist() == softmax.argsort(descending=True)[:7].tolist()
    assert torch.equal(probabilities, softmax[places])


# --- attribution ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in MODELS if name != "experts decoder"])
def test_integrated_gradients_add_up_to_the_difference(name):
    """Completeness (Sundararajan et al. 2017), which a wrong path, weight or baseline breaks. A mixture of experts is
    not complete: it jumps where another expert is chosen, which no gradient knows of."""
    model, tokens = model_named(name), prompt(9)
    found = integrated_gradients(model, tokens, [5] * 9, steps=64)
    assert found.token == int(logits(model, tokens)[-1].argmax())
    assert found.value == pytest.approx(float(logits(model, tokens)[-1].log_softmax(-1)[found.token]), abs=1e-5)
    baseline = float(logits(model, [5] * 9)[-1].log_softmax(-1)[found.token])
    assert found.baseline_value == pytest.approx(baseline, abs=1e-5)
    assert abs(found.gap) < 0.02 * max(1.0, abs(found.value - baseline))
    assert all(each.grad is None for each in model.parameters())


def test_more_steps_add_up_more_exactly():
    model, tokens = decoder(torch.float64, norm="layer"), prompt(9)
    gaps = [abs(integrated_gradients(model, tokens, [5] * 9, token=3, steps=steps).gap) for steps in (2, 8, 64)]
    assert gaps[2] < gaps[1] < gaps[0]
    assert gaps[2] < 1e-6


def test_input_times_gradient_is_the_derivative_by_each_tokens_scale():
    """Against central differences in float64."""
    model, tokens, step = decoder(torch.float64), prompt(6), 1e-5
    found = input_x_gradient(model, tokens, token=7)
    embeddings = embedding_of(model)(torch.tensor([tokens])).detach()
    for place, score in enumerate(found.scores.tolist()):
        values = []
        for sign in (1, -1):
            scaled = embeddings.clone()
            scaled[0, place] *= 1 + sign * step
            with with_embeddings(model, scaled):
                values.append(float(logits(model, tokens)[-1].log_softmax(-1)[7]))
        assert score == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6, abs=1e-9)


# --- the tuned lens -------------------------------------------------------------------------------------------------


def test_a_lens_that_is_not_fitted_is_the_logit_lens():
    model, tokens = decoder(), prompt()
    plain, tuned = logit_lens(model, tokens), logit_lens(model, tokens, lens=TunedLens(3, 32))
    assert all(torch.equal(*each) for each in zip(plain, tuned, strict=True))


@pytest.mark.parametrize("name", ["decoder", "gemma2", "patched qwen3"])
def test_a_fitted_lens_is_nearer_to_the_model_and_leaves_it_alone(name, tmp_path):
    """Traps: the model itself is trained, or keeps gradients; another model's lens is taken."""
    model = model_named(name)
    before = copy.deepcopy(model.state_dict())
    windows = [prompt(16 * 40)[first : first + 16] for first in range(0, 16 * 40, 16)]
    seen = []
    settings = {"steps": 40, "learning_rate": 3e-3, "seed": 1}
    lens = fit_tuned_lens(model, windows[:-8], report=lambda step, each: seen.append(step), **settings)
    assert seen == list(range(1, 41))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    held_out = [(logit_lens(model, each), logit_lens(model, each, lens=lens)) for each in windows[-8:]]
    means = [[each.divergences.mean(-1) for each in side] for side in zip(*held_out, strict=True)]
    plain, tuned = (torch.stack(side).mean(0) for side in means)
    assert (tuned[:-1] < plain[:-1]).all()
    assert torch.equal(tuned[-1], plain[-1])
    again = fit_tuned_lens(model, windows[:-8], **settings)
    assert all(torch.equal(*each) for each in zip(lens.state_dict().values(), again.state_dict().values(), strict=True))

    save_tuned_lens(lens, tmp_path / "lens.safetensors", model)
    loaded = load_tuned_lens(tmp_path / "lens.safetensors", model).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in lens.state_dict().items())
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    with pytest.raises(ValueError, match="fitted to another model"):
        load_tuned_lens(tmp_path / "lens.safetensors", model)


def test_what_is_no_lens_is_refused(tmp_path):
    from safetensors.torch import save_file

    model = decoder()
    file = tmp_path / "lens.safetensors"
    with pytest.raises(ValueError, match="does not exist"):
        load_tuned_lens(file, model)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="damaged"):
        load_tuned_lens(file, model)
    save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="holds no tuned lens"):
        load_tuned_lens(file, model)
    with pytest.raises(ValueError, match="of 2 layers of width 32"):
        logit_lens(model, prompt(), lens=TunedLens(2, 32))
    with pytest.raises(ValueError, match="one length"):
        fit_tuned_lens(model, [[1, 2], [3]])
    with pytest.raises(ValueError, match="steps must be above 0"):
        fit_tuned_lens(model, [[1, 2]], steps=0)


# --- norms and neighbors --------------------------------------------------------------------------------------------


def test_norms_and_outliers_are_found_where_they_are():
    states = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))
    states[1, 4, 9] = -500.0
    states[2, 0, 3] = 2000.0
    found = activation_norms(states)
    values = states.double().numpy()
    np.testing.assert_allclose(found.norms, np.sqrt((values**2).sum(-1)), rtol=1e-6)
    np.testing.assert_allclose(found.largest, np.abs(values).max(-1), rtol=1e-6)
    first, second = outliers(states, times_median=100)
    assert (first.row, first.position, first.channel, first.value) == (2, 0, 3, 2000.0)
    assert (second.row, second.position, second.channel, second.value) == (1, 4, 9, -500.0)
    assert second.times_median == pytest.approx(500 / float(found.medians[1]))
    assert outliers(states, times_median=100, most=1) == [first]


def test_neighbors_are_nearest_by_angle_and_never_padding():
    model = decoder()
    with torch.no_grad():
        model.embedding.weight[11] = 3 * model.embedding.weight[7]  # the same direction, another length
        model.embedding.weight[59] = model.embedding.weight[7]
    ids, cosines = embedding_neighbors(model, [7, 20], count=5, vocabulary=59)
    table = model.embedding.weight.detach().double().numpy()[:59]
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    for row, token in enumerate((7, 20)):
        expected = unit @ unit[token]
        nearest = np.sort(np.delete(expected, token))[::-1][:5]
        np.testing.assert_allclose(cosines[row], nearest, rtol=1e-5, atol=1e-6)
        # Not their order: tokens 7 and 11 are equally near to every other.
        np.testing.assert_allclose(expected[ids[row].tolist()], nearest, rtol=1e-5, atol=1e-6)
        assert token not in ids[row].tolist()
    assert ids[0, 0] == 11
    with pytest.raises(ValueError, match="token 59 is not one of the 59"):
        embedding_neighbors(model, [59], vocabulary=59)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_by_name():
    model = decoder()
    with pytest.raises(ValueError, match="no layer 3; choose from 0 to 2"), ablated(model, layers=[3]):
        pass
    with pytest.raises(ValueError, match="no head 4; choose from 0 to 3"), ablated(model, heads=[(0, 4)]):
        pass
    with pytest.raises(ValueError, match="fewer than two tokens"):
        token_losses(model, [1])
    with pytest.raises(ValueError, match="the model's context is 64"):
        logit_lens(model, prompt(65))
    with pytest.raises(ValueError, match="baseline must have as many tokens as the prompt, 3, got 2"):
        integrated_gradients(model, [1, 2, 3], [0, 0])
    with pytest.raises(ValueError, match="token 60 is not one of the 60"):
        input_x_gradient(model, [1, 2], token=60)
    with pytest.raises(ValueError, match="neither a Decoder nor"):
        logit_lens(torch.nn.Linear(3, 3), [1])
    assert len(layers_of(model)) == 3
    assert math.isfinite(float(token_losses(model, prompt()).sum()))
