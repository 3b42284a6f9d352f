"""Small models trained for a step, which tests of training warnings share."""

import torch
from torch import nn


def optimizer_of(model, cls=torch.optim.SGD):
    return cls([p for p in model.parameters() if p.requires_grad], lr=0.1)


def step(model, optimizer, x=None):
    optimizer.zero_grad()
    x = (
        torch.ones(2, next(m for m in model.modules() if isinstance(m, nn.Linear)).in_features)
        if x is None
        else x
    )
    model(x.requires_grad_()).square().sum().backward()
    optimizer.step()
