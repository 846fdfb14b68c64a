"""vocab_parallel_cross_entropy: two processes, each with a part of the classes, have the loss and gradients of one."""

import jobs
import pytest
import torch
from kernel_testing import random_tensor, require_interpreter
from llmfast.kernels import cross_entropy, vocab_parallel_cross_entropy
from ranks import run_ranks

CLASSES = 40
BOUNDS = [(0, 17), (17, CLASSES)]  # parts of different sizes, rows of which start anywhere
IGNORED = 2  # a class of the first part, and the place of a class in the second
OPTIONS = [
    {"ignore_index": IGNORED},
    {"ignore_index": IGNORED, "reduction": "none", "z_loss": 0.1},
    {
        "ignore_index": IGNORED,
        "reduction": "sum",
        "label_smoothing": 0.1,
        "z_loss": 0.01,
        "softcap": 3.0,
        "weighted": True,
    },
    {"ignore_index": IGNORED, "label_smoothing": 0.3},
    {"ignore_index": IGNORED, "weighted": True},
]


@pytest.mark.parametrize("path", ["reference", "triton"])
def test_two_processes_have_the_loss_and_the_gradients_of_one(path):
    """Traps: the smoothing of a process's part alone; the weight of a target that lies elsewhere; a target of a part
    that happens to be the ignored index; a part of probabilities near 0."""
    require_interpreter()
    logits = 2 * random_tensor((3, 4, CLASSES))
    logits[0, 0, :17] = -30.0
    target = torch.randint(0, CLASSES, (3, 4), generator=torch.Generator().manual_seed(5))
    target[0, 0], target[0, 1], target[1, 1] = 20, IGNORED, IGNORED + 17
    weight = torch.rand(CLASSES, generator=torch.Generator().manual_seed(6))
    parts = run_ranks(jobs.vocab_parallel_losses, 2, path, logits, target, weight, OPTIONS, BOUNDS)
    for i, given in enumerate(OPTIONS):
        options = dict(given)
        options["weight"] = weight if options.pop("weighted", False) else None
        whole = logits.double().requires_grad_()
        expected = cross_entropy(whole, target, **options, return_lse=True, return_z_loss=True)
        (expected[0].square().sum() + expected[1].sum()).backward()
        for found, (first, end) in zip(parts, BOUNDS, strict=True):
            for mine, right in zip(found[i], (*expected, whole.grad[..., first:end]), strict=True):
                scale = max(1.0, right.abs().max().item())
                mine = torch.tensor(mine, dtype=torch.float64)
                torch.testing.assert_close(mine, right.detach(), rtol=0, atol=1e-6 * scale)


def test_without_processes_it_says_so():
    with pytest.raises(ValueError, match="no processes to share a vocabulary"):
        vocab_parallel_cross_entropy(torch.ones(2, 4), torch.zeros(2, dtype=torch.long))


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_alone_in_its_group_it_is_cross_entropy(one_process, device):
    logits = random_tensor((6, 9), device=device).requires_grad_()
    target = torch.tensor([0, 8, 9, -1, 3, -100], device=device)
    options = {"reduction": "none", "z_loss": 0.1, "label_smoothing": 0.1}
    alone, plain = (loss(logits, target, **options) for loss in (vocab_parallel_cross_entropy, cross_entropy))
    torch.testing.assert_close(alone, plain, equal_nan=True)
    gradients = [torch.autograd.grad(losses[target >= 0].nansum(), logits)[0] for losses in (alone, plain)]
    torch.testing.assert_close(*gradients, equal_nan=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_class": 3}, "give both or neither: first_class is 3"),
        ({"first_class": 5, "vocabulary": 8}, "first_class must be from 0 to 4"),
        ({"weight": torch.ones(3)}, r"weight must have one element a class, \(4,\)"),
        ({"reduction": "avg"}, "reduction must be one of"),
    ],
)
def test_errors_name_the_argument(one_process, options, message):
    with pytest.raises(ValueError, match=message):
        vocab_parallel_cross_entropy(torch.ones(2, 4), torch.zeros(2, dtype=torch.long), **options)
