"""Both passes for sm_90 in Gluon: persistent programs, in which one warp loads and two groups multiply.

They compute what `fastlora_kernels.forward` and `backward` do, for calls that `blocks.refusal` lets through.
Those stay the default and the oracle. Importing a module of this folder imports Gluon, but for `blocks`.
"""
