import pytest
import torch
from torch import nn

from lecture6 import models
from lecture6.models import count_parameters, flat_parameters, layer_table, local_seed

# name, input shape of a sample, classes, parameters: Keskar et al., Table 1 and Appendix B
NETS = {
    "f1": (models.f1, (1, 28, 28), 10, 1_462_794),
    "f2": (models.f2, (360,), 1973, 2_780_085),
    "c1": (models.c1, (3, 32, 32), 10, 1_757_834),
    "c1, paper's text": (lambda **k: models.c1(stride=2, **k), (3, 32, 32), 10, 283_274),
    "c2": (models.c2, (3, 32, 32), 10, 14_991_946),
    "mlp": (models.mlp, (1, 28, 28), 10, 636_010),
}
SMALL = ["f1", "f2", "c1", "c1, paper's text", "mlp"]  # C2 only where its size is the point


def noise(shape, n, seed=0):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NETS)
def test_parameter_count_table_and_output_shape(name):
    make, shape, n_classes, n_parameters = NETS[name]
    model = make()
    assert count_parameters(model) == len(flat_parameters(model)) == n_parameters
    table = layer_table(model, shape)
    assert table["parameters"].sum() == n_parameters
    assert table["output"].iloc[0] == shape
    assert table["output"].iloc[-1] == (n_classes,)
    with torch.no_grad():
        assert model(noise(shape, 3)).shape == (3, n_classes)


def test_c1_shapes_of_the_released_code_and_of_the_papers_text():
    def maps(stride):
        return list(layer_table(models.c1(stride=stride), (3, 32, 32))["output"])

    assert [s for s in maps(1) if len(s) == 3][1::4] == [(64, 32, 32), (64, 16, 16)]
    assert [s for s in maps(2) if len(s) == 3][-1] == (64, 2, 2)
    assert (4096,) in maps(1)


def test_c1_is_two_times_conv_norm_relu_pool_and_two_dense_layers_with_dropout():
    kinds = [type(layer).__name__.rstrip("12d") for layer in models.c1()]
    conv, dense = ["Conv", "BatchNorm", "ReLU", "MaxPool"], ["Linear", "BatchNorm", "ReLU"]
    assert kinds == [*conv, *conv, "Flatten", *dense, "Dropout", *dense, "Dropout", "Linear"]
    for pool in (layer for layer in models.c1() if isinstance(layer, nn.MaxPool2d)):
        assert (pool.kernel_size, pool.stride) == (3, 2)


def test_number_of_classes_can_be_chosen():  # C3 and C4 are C1 and C2 with 100 classes
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


@pytest.mark.parametrize("name", ["c1", "c2"])
def test_dropout_is_off_in_eval(name):
    make, shape, *_ = NETS[name]
    model, x = make().eval(), noise(shape, 4)
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


def test_layer_table_leaves_the_model_and_the_callers_generator_alone():
    model = models.c1(batch_norm="running")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    layer_table(model, (3, 32, 32))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_flat_parameters_is_a_detached_copy_in_the_order_of_the_module():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    w = flat_parameters(model)
    assert w.shape == (13,)
    assert not w.requires_grad
    torch.testing.assert_close(w[:6].view(3, 2), model[0].weight)
    torch.testing.assert_close(w[-1:], model[1].bias)
    w.zero_()
    assert model[0].weight.abs().sum() > 0


@pytest.mark.parametrize("make", [models.f1, models.f2, models.c1, models.c2])
def test_unknown_batch_norm_is_refused(make):
    with pytest.raises(ValueError, match="batch_norm must be 'batch' or 'running', got 'none'"):
        make(batch_norm="none")


@pytest.mark.parametrize("stride", [0, 3])
def test_unknown_stride_is_refused(stride):
    with pytest.raises(ValueError, match=rf"stride must be 1 .* or 2 .*, got {stride}"):
        models.c1(stride=stride)


def test_mlp_without_biases_is_positively_homogeneous():
    model, x = models.mlp(n_hidden=20, bias=False, seed=1), noise((784,), 5)
    assert models.count_parameters(model) == 784 * 20 + 20 * 10
    with torch.no_grad():
        torch.testing.assert_close(model(3 * x), 3 * model(x))
        assert not torch.allclose(models.mlp(n_hidden=20)(3 * x), 3 * models.mlp(n_hidden=20)(x))
