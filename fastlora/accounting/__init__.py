"""The cost of a pass, a layer and a training run: counted, not measured."""
