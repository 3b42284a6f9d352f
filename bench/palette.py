"""A colour for each method, the same in every picture."""

from __future__ import annotations

from typing import Final

# Okabe and Ito's palette, distinct to colour-blind eyes, and grey for what is not LoRA's to beat.
COLOURS: Final = {
    "frozen": "#999999",
    "full": "#D55E00",
    "parametrized": "#CC79A7",
    "unfused": "#56B4E9",
    "compiled": "#332288",
    "addmm": "#009E73",
    "loralib": "#F0E442",
    "peft": "#E69F00",
    "lorafusion": "#000000",
    "transformer-engine": "#882255",
    "fastlora": "#0072B2",
}
