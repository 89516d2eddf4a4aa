"""The quick group norm is torch's group norm."""

import copy

import pytest
import torch

from sd_ext.training.quick.group_norm import GroupNorm, quicken


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_same_values_and_gradients_as_torch(layout):
    torch.manual_seed(0)
    plain = torch.nn.GroupNorm(4, 12).double()
    torch.nn.init.normal_(plain.weight)
    torch.nn.init.normal_(plain.bias)
    quick = quicken(copy.deepcopy(plain))
    assert type(quick) is GroupNorm
    x = (torch.randn(3, 12, 5, 7, dtype=torch.float64) + 2).contiguous(memory_format=layout)
    upstream = torch.randn_like(x)
    results = []
    for module in (plain, quick):
        inputs = x.clone().requires_grad_()
        y = module(inputs)
        y.backward(upstream)
        results.append((y, inputs.grad, module.weight.grad, module.bias.grad))
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_three_dimensions_and_state_dict_are_torchs():
    model = torch.nn.Sequential(torch.nn.GroupNorm(2, 8))
    keys = list(model.state_dict())
    assert list(quicken(model).state_dict()) == keys
    x = torch.randn(2, 8, 6)
    torch.testing.assert_close(model(x), torch.nn.functional.group_norm(x, 2, eps=1e-5))
