"""The kernels compiled for any GPU on any machine, and what every entry of the tile tables is held to."""
