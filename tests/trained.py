"""Modules with numbers as of trained ones."""

import torch


def trained(module):
    """Move every parameter: no bias and no attention scale is left at zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module.eval()
