"""What goes wrong with adapters on disk."""


class AdapterError(ValueError):
    """An adapter on disk is damaged, foreign or not supported, or does not fit the model."""
