import pytest
import torch
import torch.nn.functional as F
from synthetic import gaussian_classes
from torch import nn

from lecture6.evaluation import evaluate, evaluation_batches, prepared
from lecture6.models import local_seed
from lecture6.team import Team

DATA = gaussian_classes(50, 20, shape=(5,), n_classes=3)


def net():
    with local_seed(0):
        return nn.Linear(5, 3)


@pytest.mark.parametrize("batch_size", [1, 7, 16, 50, 1000])
def test_an_uneven_cut_changes_no_mean(batch_size):
    model = net().double()
    x, y = DATA.x_train.double(), DATA.y_train
    batches = evaluation_batches(x, y, batch_size)
    assert len(batches) == -(-50 // batch_size)
    assert {len(part) for _, part in batches} <= {50 // len(batches), -(-50 // len(batches))}
    loss, accuracy = evaluate(model, batches)
    with torch.no_grad():
        z = model(x)
    assert loss == pytest.approx(F.cross_entropy(z, y).item(), rel=1e-12)
    assert accuracy == (z.argmax(1) == y).double().mean().item()


def test_a_batch_takes_every_nth_sample():
    x = torch.arange(7.0)
    assert [part.tolist() for part, _ in evaluation_batches(x, x, 3)] == [[0, 3, 6], [1, 4], [2, 5]]


class Half(Team):
    """One of two workers; what the other one has is known here."""

    def sum(self, tensor):
        other = torch.tensor(self.others, dtype=tensor.dtype)
        return tensor + other


def test_the_workers_of_a_team_divide_the_batches():
    batches = evaluation_batches(DATA.x_train, DATA.y_train, 10)
    whole = evaluate(net(), batches)
    halves = []
    for rank in (0, 1):
        half = Half(torch.device("cpu"), rank, 2)
        half.others = [0.0, 0.0]
        halves.append(evaluate(net(), batches, half))
    assert [sum(part) for part in zip(*halves, strict=True)] == pytest.approx(list(whole))


def test_both_sets_come_as_the_model_takes_them():
    x, y, sets = prepared(net().double(), DATA)
    assert (x.dtype, y.dtype, len(x)) == (torch.float64, torch.int64, 50)
    assert [name for name, _ in sets.items()] == ["train", "test"]
    assert sum(len(part) for part, _ in sets["test"]) == 20
