"""FusedLoRAEmbedding: a trained low-rank update on an embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastlora.layer import base_weights, training_warnings
from fastlora.layer.adapter import Adapter, Options
from fastlora.layer.class_over import class_over
from fastlora.layer.commits import exclusive
from fastlora.layer.linear_kinds import odd_tensor
from fastlora.layer.new_adapter import new_adapter
from fastlora.layer.replacement import check_own_forward
from fastlora.layer.starts import start
from fastlora.layer.unfused import Unfused


class FusedLoRAEmbedding(Unfused, nn.Embedding):
    """y = e (W + s B A)ᵀ[i], with `weight` [num_embeddings, embedding_dim], which is Wᵀ, frozen.

    It is made around an nn.Embedding (`apply_lora` by name; "all-linear" means none), whose parameters,
    attributes and state_dict names it takes over; its class is also a subclass of that embedding's. A is
    [r, num_embeddings] and B [embedding_dim, r], as in PEFT's files; A starts at zero and B random. e is the
    factor of an embedding that Transformers scales, else 1. There is no dropout, as in PEFT. The row of
    `padding_idx` gets no gradient. What its methods return as a weight lies as `weight` does.
    """

    holds_transposed = True
    _library_class: type = nn.Embedding
    weight: nn.Parameter

    @classmethod
    def around(cls, embedding: Any, **options: Any) -> FusedLoRAEmbedding:
        """A LoRA layer around an embedding, which is unchanged; the caller freezes W."""
        check_embedding("embedding", embedding)
        return _class_over(type(embedding))._around(embedding, **options)

    @property
    def in_features(self) -> int:
        """K: the number of rows of `weight`."""
        return self.num_embeddings

    @property
    def out_features(self) -> int:
        """N: the size of a row of `weight`."""
        return self.embedding_dim

    @property
    def bias(self) -> None:
        """There is none."""
        return None

    def new_adapter(self, options: Options, dtype: torch.dtype | None) -> Adapter:
        """A new adapter, whose update is zero, as PEFT starts it."""
        for name in ("dora", "lora_bias"):
            if getattr(options, name):
                raise ValueError(
                    f"{name} must be False for an embedding (leave it out, or train it in modules_to_save)"
                )
        adapter = new_adapter(base_weights.like_weight(self), options, dtype)
        start(adapter.lora_A, adapter.lora_B, options.init, of_embedding=True)
        return adapter

    def _computed(self, ids: Tensor) -> Tensor:
        """Indices [...] -> [..., embedding_dim]."""
        active, kept = self._active, self._base_weight
        off = active is None or not self.enabled
        y = self._looked_up(ids, self._weight_now())
        if active is not None and not off and kept is None:
            A, B = active()
            p = self._looked_up(ids, A.t())
            y = y + (F.linear(p, B) * active.scaling).to(y.dtype)
        else:
            training_warnings.suspect(self)
        scale = getattr(self, "embed_scale", None)
        if scale is None:
            return y
        return y * (scale.to(y.dtype) if isinstance(scale, Tensor) else scale)

    def _looked_up(self, ids: Tensor, rows: Tensor) -> Tensor:
        return F.embedding(ids, rows, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)

    def _sum(self) -> Tensor:
        return super()._sum().t().contiguous()

    @exclusive
    @torch.no_grad()
    def effective_weight(self) -> Tensor:
        """A copy of the weight that forward applies, [num_embeddings, embedding_dim], without e."""
        found = super().effective_weight()
        return found if self.enabled else found.t().contiguous()


def is_embedding(module: object) -> bool:
    """Whether a module is an nn.Embedding, or of a subclass, but no LoRA layer."""
    return isinstance(module, nn.Embedding) and not isinstance(module, FusedLoRAEmbedding)


def check_embedding(name: str, module: Any) -> None:
    """Raise TypeError, calling the module `name`, unless LoRA on it computes what PEFT's does.

    Refused are subclasses but Transformers' scaled ones, `max_norm`, which changes W as it is read, `sparse`
    gradients, a replaced forward and a weight that is no plain tensor.
    """
    cls = type(module)
    scaled = cls.__name__.endswith("ScaledWordEmbedding") and hasattr(module, "embed_scale")
    if cls is not nn.Embedding and not scaled:
        raise TypeError(
            f"{name} must be exactly an nn.Embedding, or one that Transformers scales; got {cls.__name__}"
        )
    for option in ("max_norm", "sparse"):
        if getattr(module, option):
            raise TypeError(f"{name} must be an embedding without {option}; got {getattr(module, option)}")
    check_own_forward(name, module)
    if set(module._parameters) != {"weight"} or (why := odd_tensor(module.weight)):
        what = ", ".join(module._parameters) if set(module._parameters) != {"weight"} else why
        raise TypeError(f"{name} must hold one plain weight; it has {what}")


def _class_over(library: type) -> type[FusedLoRAEmbedding]:
    if library is nn.Embedding:
        return FusedLoRAEmbedding
    return class_over(FusedLoRAEmbedding, library, _blank)


def _blank(library: type) -> FusedLoRAEmbedding:
    cls = _class_over(library)
    return cls.__new__(cls)
