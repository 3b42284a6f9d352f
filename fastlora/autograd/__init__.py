"""The formula for torch: an autograd function, and operators for torch.compile and torch.export."""
