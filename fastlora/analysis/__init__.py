"""Analysis of updates: their size, the directions of W that they amplify, and the similarity of two."""

from fastlora.analysis.heatmaps import draw_similarity, draw_updates
from fastlora.analysis.similarity import Similarity, adapter_similarity, subspace_similarity
from fastlora.analysis.updates import LayerUpdate, UpdateReport, amplification, effective_rank, update_report

__all__ = [
    "LayerUpdate",
    "Similarity",
    "UpdateReport",
    "adapter_similarity",
    "amplification",
    "draw_similarity",
    "draw_updates",
    "effective_rank",
    "subspace_similarity",
    "update_report",
]
