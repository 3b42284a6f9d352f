"""A colour for each method, the same in every picture."""

from __future__ import annotations

from typing import Final

# Okabe and Ito's palette, distinct to colour-blind eyes, two dark hues beside, and greys for what is no LoRA.
COLOURS: Final = {
    "frozen": "#BBBBBB",
    "full": "#777777",
    "unfused": "#56B4E9",
    "compiled": "#CC79A7",
    "addmm": "#009E73",
    "peft": "#E69F00",
    "loralib": "#882255",
    "parametrized": "#F0E442",
    "lorafusion": "#D55E00",
    "transformer-engine": "#332288",
    "fastlora": "#0072B2",
    "fastlora-p0": "#9ECAE9",
}
