import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from synthetic import gaussian_classes
from torch import nn

from lecture6 import models
from lecture6.models import (
    count_parameters,
    flat_parameters,
    local_seed,
    unflatten,
)
from lecture6.objective import NetworkObjective
from lecture6.train import train

# name, input shape of a sample, classes, parameters: Keskar et al., Table 1 and Appendix B
NETS = {
    "f1": (models.f1, (1, 28, 28), 10, 1_462_794),
    "f2": (models.f2, (360,), 1973, 2_780_085),
    "c1": (models.c1, (3, 32, 32), 10, 1_757_834),
    "c1, paper's text": (lambda **k: models.c1(stride=2, **k), (3, 32, 32), 10, 283_274),
    "vgg11": (models.vgg11, (3, 32, 32), 10, 9_231_114),
    "mlp": (models.mlp, (1, 28, 28), 10, 636_010),
    # He et al., Table 6: 0.27M and 0.46M
    "resnet-20": (models.resnet, (3, 32, 32), 10, 269_722),
    "resnet-32": (lambda **k: models.resnet(32, **k), (3, 32, 32), 10, 464_154),
}
SMALL = [name for name in NETS if name not in ("vgg11", "resnet-32")]


def noise(shape, n, seed=0):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NETS)
def test_parameter_count_and_output_shape(name):
    make, shape, n_classes, n_parameters = NETS[name]
    model = make()
    assert count_parameters(model) == len(flat_parameters(model)) == n_parameters
    with torch.no_grad():
        assert model(noise(shape, 3)).shape == (3, n_classes)


def test_c1_shapes_of_the_released_code_and_of_the_papers_text():
    def maps(stride):
        x, shapes = noise((3, 32, 32), 2), []
        for layer in models.c1(stride=stride):
            shapes.append((x := layer(x)).shape[1:])
        return shapes

    assert [s for s in maps(1) if len(s) == 3][::4] == [(64, 32, 32), (64, 16, 16)]
    assert [s for s in maps(2) if len(s) == 3][-1] == (64, 2, 2)
    assert (4096,) in maps(1)


def test_c1_is_two_times_conv_norm_relu_pool_and_two_dense_layers_with_dropout():
    kinds = [type(layer).__name__.rstrip("12d") for layer in models.c1()]
    conv, dense = ["Conv", "BatchNorm", "ReLU", "MaxPool"], ["Linear", "BatchNorm", "ReLU"]
    assert kinds == [*conv, *conv, "Flatten", *dense, "Dropout", *dense, "Dropout", "Linear"]
    for pool in (layer for layer in models.c1() if isinstance(layer, nn.MaxPool2d)):
        assert (pool.kernel_size, pool.stride) == (3, 2)


def test_number_of_classes_can_be_chosen():  # C3 is C1 with 100 classes
    assert models.c1(100)(noise((3, 32, 32), 2)).shape == (2, 100)
    assert models.f1(n_inputs=7, n_classes=3)(noise((7,), 2)).shape == (2, 3)


@pytest.mark.parametrize("name", ["f1", "c1"])
def test_batch_norm_in_eval_uses_the_batchs_own_statistics(name):
    make, shape, *_ = NETS[name]
    model, x = make().eval(), noise(shape, 8)
    with torch.no_grad():
        alone, among_others = model(x[:4])[0], model(x)[0]
    assert (alone - among_others).abs().max() > 1e-3
    assert list(model.buffers()) == []

    usual = make(batch_norm="running").eval()
    with torch.no_grad():
        torch.testing.assert_close(usual(x[:4])[0], usual(x)[0], atol=1e-5, rtol=1e-4)
    assert len(list(usual.buffers())) > 0
    torch.testing.assert_close(flat_parameters(usual), flat_parameters(model), atol=0, rtol=0)


def test_batch_norm_normalises_to_mean_0_and_variance_1_in_eval():
    model = models.f1().eval()
    with torch.no_grad():
        hidden = model[:3](3 + 2 * noise((784,), 64))  # Flatten, Linear, BatchNorm1d
    torch.testing.assert_close(hidden.mean(0), torch.zeros(512), atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden.var(0, unbiased=False), torch.ones(512), atol=1e-3, rtol=0)


def test_dropout_is_off_in_eval():
    model, x = models.c1().eval(), noise((3, 32, 32), 4)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        model.train()
        assert not torch.equal(model(x), model(x))


def test_c1_drops_half_of_each_dense_layer():
    model = models.c1().train()
    survivors = {}

    def count(layer, inputs, output):
        (x,) = inputs
        survivors[x.shape[1]] = (output[x > 0] != 0).double().mean().item()
        torch.testing.assert_close(output[output != 0], 2 * x[output != 0])

    for layer in model:
        if isinstance(layer, nn.Dropout):
            layer.register_forward_hook(count)
    with torch.no_grad(), local_seed(0):
        model(noise((3, 32, 32), 256))
    # about 256·192/2 or more positive units: 5 standard deviations are below 0.017
    assert survivors == {384: pytest.approx(0.5, abs=0.017), 192: pytest.approx(0.5, abs=0.017)}


@pytest.mark.parametrize("name", SMALL)
def test_weights_come_from_the_seed_alone(name):
    make = NETS[name][0]
    state = torch.get_rng_state()
    first = flat_parameters(make(seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)  # the caller's generator has moved on
    assert torch.equal(flat_parameters(make(seed=3)), first)
    assert not torch.equal(flat_parameters(make(seed=4)), first)


def test_local_seed_restores_the_callers_state_after_an_error():
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError), local_seed(1):
        torch.rand(3) @ torch.rand(2)
    assert torch.equal(torch.get_rng_state(), state)
    with local_seed(1):
        first = torch.rand(3)
    with local_seed(1):
        assert torch.equal(torch.rand(3), first)


def test_flat_parameters_is_a_detached_copy_in_the_order_of_the_module():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    w = flat_parameters(model)
    assert w.shape == (13,)
    assert not w.requires_grad
    torch.testing.assert_close(w[:6].view(3, 2), model[0].weight)
    torch.testing.assert_close(w[-1:], model[1].bias)
    w.zero_()
    assert model[0].weight.abs().sum() > 0


def test_unflatten_gives_the_parameters_back_as_views():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    w = flat_parameters(model)
    parts = unflatten(w, {name: p.shape for name, p in model.named_parameters()})
    for (name, part), (expected, p) in zip(parts.items(), model.named_parameters(), strict=True):
        assert name == expected
        assert torch.equal(part, p)
    w.zero_()
    assert not any(part.any() for part in parts.values())


def test_w_is_made_of_the_real_floating_parameters():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    model[0].places = nn.Parameter(torch.arange(4), requires_grad=False)
    assert count_parameters(model) == len(flat_parameters(model)) == 13  # frozen ones, not places
    for odd, message in (
        (nn.Linear(2, 3, dtype=torch.complex64), "weight is complex"),
        (nn.LazyLinear(3), "weight has no shape yet"),
    ):
        for measure in (count_parameters, flat_parameters):
            with pytest.raises(ValueError, match=message):
                measure(odd)


SIZES = [
    (models.f1, "n_inputs"),
    (models.f1, "n_classes"),
    (models.f2, "n_classes"),
    (models.c1, "n_classes"),
    (models.vgg11, "n_classes"),
    (models.mlp, "n_inputs"),
    (models.mlp, "n_hidden"),
    (models.mlp, "n_classes"),
    (models.resnet, "n_classes"),
    (models.resnet, "in_channels"),
    (models.resnet50, "n_classes"),
]


@pytest.mark.parametrize(("make", "name"), SIZES)
def test_impossible_sizes_are_refused(make, name):
    for value in (0, -3, 2.5, math.nan, True, "8"):
        with pytest.raises(ValueError, match=rf"{name} must be .*, got '?{value}"):
            make(**{name: value})


@pytest.mark.parametrize("make", dict.fromkeys(make for make, _ in SIZES))
def test_impossible_seeds_are_refused(make):
    for seed in (-1, 2**63, 0.5, None):
        with pytest.raises(ValueError, match="seed must be "):
            make(seed=seed)


def test_numpy_numbers_are_numbers():
    one, two, eight = np.int64(1), np.int32(2), np.int64(8)
    for make, options in (
        (models.f1, {"n_inputs": eight, "n_classes": two, "seed": one}),
        (models.c1, {"n_classes": two, "stride": two, "seed": one}),
        (models.mlp, {"n_inputs": eight, "n_hidden": eight, "n_classes": two, "seed": one}),
        (models.mlp, {"n_inputs": eight, "n_hidden": np.array([8, 2]), "n_classes": two}),
        (models.resnet, {"depth": eight, "n_classes": two, "in_channels": one}),
    ):
        plain = {name: value.tolist() for name, value in options.items()}
        assert torch.equal(flat_parameters(make(**options)), flat_parameters(make(**plain)))


@pytest.mark.parametrize("make", [models.f1, models.c1])
def test_unknown_batch_norm_is_refused(make):
    with pytest.raises(ValueError, match="batch_norm must be 'batch' or 'running', got 'none'"):
        make(batch_norm="none")


@pytest.mark.parametrize("stride", [0, 3])
def test_unknown_stride_is_refused(stride):
    with pytest.raises(ValueError, match=f"stride must be at least 1 and at most 2, got {stride}"):
        models.c1(stride=stride)


def test_an_mlp_has_as_many_hidden_layers_as_widths():
    deep = models.mlp(20, (8, 6, 4), 3, seed=1)
    shapes = [tuple(m.weight.shape) for m in deep if hasattr(m, "weight")]
    assert shapes == [(8, 20), (6, 8), (4, 6), (3, 4)]
    assert [type(m).__name__ for m in deep[1:]] == ["Linear", "ReLU"] * 3 + ["Linear"]
    one, same = models.mlp(20, 8, seed=1), models.mlp(20, [8], seed=1)
    assert torch.equal(models.flat_parameters(one), models.flat_parameters(same))


def test_mlp_without_biases_is_positively_homogeneous():
    model, x = models.mlp(n_hidden=20, bias=False, seed=1), noise((784,), 5)
    assert models.count_parameters(model) == 784 * 20 + 20 * 10
    with torch.no_grad():
        torch.testing.assert_close(model(3 * x), 3 * model(x))
        assert not torch.allclose(models.mlp(n_hidden=20)(3 * x), 3 * models.mlp(n_hidden=20)(x))


# --- residual networks --------------------------------------------------------------------------


def test_a_residual_block_is_at_first_its_shortcut():
    model, x = models.resnet(20), noise((3, 32, 32), 40)
    blocks = [layer for layer in model if isinstance(layer, models.ResidualBlock)]
    assert len(blocks) == 9
    with torch.no_grad():
        stem = model[:3](x)  # not negative
        assert torch.equal(blocks[0](stem), stem)
        halved = blocks[3](stem)
        assert torch.equal(halved[:, :16], stem[:, :, ::2, ::2])
        assert halved.shape == (40, 32, 16, 16)
        assert not halved[:, 16:].any()
        nn.init.ones_(blocks[0].residual[-1].weight)
        assert not torch.equal(blocks[0](stem), stem)


def test_the_initial_weights_of_a_resnet_are_goyals():
    model = models.resnet(20, 1000, seed=2)
    conv = next(m for m in model[-4].modules() if isinstance(m, nn.Conv2d))
    assert conv.bias is None
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert model[-1].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not model[-1].bias.any()


def test_a_resnet_of_other_sizes():
    grey = models.resnet(8, 4, in_channels=1)
    assert grey(noise((1, 28, 28), 6)).shape == (6, 4)
    for depth in (2, 18, 21):
        with pytest.raises(ValueError, match=rf"depth must be 6m \+ 2 .*, got {depth}"):
            models.resnet(depth)


@pytest.mark.slow
def test_a_resnet_is_trained_and_is_an_objective():
    images = gaussian_classes(96, 40, shape=(3, 32, 32), n_classes=3)
    run = train(models.resnet(8, 3), images, batch_size=48, lr=0.1, epochs=3, momentum=0.9)
    assert run.final("train", "loss") < run.history["loss"].iloc[0]
    model = copy.deepcopy(run.model).double()
    x, y = images.x_train.double(), images.y_train
    f = NetworkObjective(model, x, y)
    loss = F.cross_entropy(model(x), y)
    assert f.value(f.w) == pytest.approx(loss.item(), rel=1e-10)
    v = noise((f.n_params,), 1)[0].double()
    slope = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    slope = torch.cat([g.reshape(-1) for g in slope])
    torch.testing.assert_close(f.grad(f.w), slope.detach())
    curved = torch.autograd.grad(slope @ v, list(model.parameters()))
    torch.testing.assert_close(f.hvp(f.w, v), torch.cat([h.reshape(-1) for h in curved]))


def test_resnet50_is_torchvisions_with_goyals_initial_weights():
    model = models.resnet50()
    assert count_parameters(model) == 25_557_032
    block = model.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))
    assert not block.bn3.weight.any()
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not model.fc.bias.any()
    assert models.resnet50(7, seed=1).fc.weight.shape == (7, 2048)
