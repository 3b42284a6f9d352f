"""The forward and the backward pass for sm_90 in Gluon: persistent programs, one warp loads, two groups multiply.

They compute what `fastlora_kernels.forward` and `backward` compute, for what `blocks.refusal` lets through.
Those stay the default and the oracle. Importing a module of this folder imports Gluon, but for `blocks`.
"""
