"""FusedLoRAEmbedding: a trained low-rank update on an embedding."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional as F

from fastlora import arguments
from fastlora.arguments import check_bool
from fastlora.layer import base_weights, commits, training_warnings
from fastlora.layer.adapter import DEFAULT, Adapter, Options, start
from fastlora.layer.class_over import class_over
from fastlora.layer.commits import commit, exclusive
from fastlora.layer.linear_kinds import odd_tensor
from fastlora.layer.new_adapter import new_adapter
from fastlora.layer.replacement import check_own_forward, linear_as
from fastlora.layer.state import Stored


class FusedLoRAEmbedding(Stored, nn.Embedding):
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
    def from_embedding(cls, embedding: nn.Embedding, **options: Any) -> FusedLoRAEmbedding:
        """Wrap an embedding: the same weight (now frozen), its hooks and its mode.

        Args:
            embedding: An nn.Embedding, or one of Transformers' that scales it.
            options: As those of `FusedLoRALinear.from_linear`.

        Raises:
            TypeError: If it may compute something else (see `check_embedding`).
            ValueError: As in FusedLoRALinear's constructor; or if dora is True.
        """
        layer = embedding_layer_around(embedding, **{"r": 8, "alpha": None, **options})
        layer._freeze_base()
        return layer

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
        return _started(base_weights.like_weight(self), options, dtype)

    def _freeze_base(self) -> None:
        with commit() as changing:
            changing.freeze(self.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Indices [...] -> [..., embedding_dim]."""
        return self._computed(ids) if is_compiling() else commits.undisturbed(self._computed, ids)

    def _computed(self, ids: Tensor) -> Tensor:
        active, kept = self._active, self._base_weight
        off = active is None or not self.enabled
        y = self._looked_up(ids, self.weight if kept is None or not off else kept)
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

    @exclusive
    @torch.inference_mode(False)  # a plain layer may be trained later
    @torch.no_grad()
    def to_linear(self, merge: bool = True) -> nn.Embedding:
        """A plain embedding, with a new weight that holds the update, or with this one's own."""
        check_bool(merge, "merge")
        check_own_forward("layer", self)
        plain = self._as_plain_linear()
        if merge:
            plain.weight = nn.Parameter(self._finite_sum(), requires_grad=False)
        elif self._base_weight is not None:
            plain.weight = nn.Parameter(self._base_weight.clone(), requires_grad=False)
        return plain

    def _as_plain_linear(self) -> nn.Embedding:
        return cast(
            nn.Embedding, linear_as(cast(Any, self), self._library_class, without=self._own_attributes)
        )

    def reset_parameters(self) -> None:
        """Reset the weight and all adapters. Called after `to_empty`."""
        nn.Embedding.reset_parameters(self)
        if "adapters" in self._modules:
            self.reset_adapters()


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


def embedding_layer_around(
    embedding: Any, *, adapter_dtype: Any = None, name: str = DEFAULT, **options: Any
) -> FusedLoRAEmbedding:
    """A LoRA layer around an embedding, which is unchanged; the caller freezes W."""
    check_embedding("embedding", embedding)
    dtype = arguments.check_dtype("adapter_dtype", adapter_dtype)
    checked = Options.checked(
        **{"dropout": 0.0, "rslora": False, "init": "gaussian", "alpha": None, **options}
    )
    layer = linear_as(embedding, cast(Any, _class_over(type(embedding))))
    layer._begin(name, _started(base_weights.like_weight(layer), checked, dtype))
    return cast(FusedLoRAEmbedding, layer)


def _started(weight: Tensor, options: Options, dtype: torch.dtype | None) -> Adapter:
    for name in ("dora", "lora_bias"):
        if getattr(options, name):
            raise ValueError(
                f"{name} must be False for an embedding (leave it out, or train it in modules_to_save)"
            )
    adapter = new_adapter(weight, options, dtype)
    start(adapter.lora_A, adapter.lora_B, options.init, of_embedding=True)
    return adapter


def _class_over(library: type) -> type[FusedLoRAEmbedding]:
    if library is nn.Embedding:
        return FusedLoRAEmbedding
    return class_over(FusedLoRAEmbedding, library, _blank)


def _blank(library: type) -> FusedLoRAEmbedding:
    cls = _class_over(library)
    return cls.__new__(cls)
