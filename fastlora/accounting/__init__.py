"""What a pass, a layer and a training take, counted and not measured."""
