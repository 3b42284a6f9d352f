"""How anything here is measured: times, errors against fp64, random inputs, what a device holds."""
