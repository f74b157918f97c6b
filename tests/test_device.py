import pytest
import torch

from lecture6 import device


def test_the_processor_is_taken_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.choose() == torch.device("cpu")
    assert device.choose("cpu") == device.choose(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "", 1.5, "meta"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=rf"device {name!r} cannot be used here .* take 'cpu'"):
        device.choose(name)


def test_training_records_gradients_whatever_the_caller_does():
    w = torch.ones(2, requires_grad=True)
    before = torch.backends.cudnn.deterministic
    with torch.inference_mode():
        with device.for_training():
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            assert torch.backends.cudnn.deterministic
            (2 * w).sum().backward()
        assert torch.is_inference_mode_enabled()
    assert torch.backends.cudnn.deterministic == before
    assert w.grad.tolist() == [2, 2]
