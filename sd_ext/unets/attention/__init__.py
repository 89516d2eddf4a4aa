"""Attention kernels, and the processors that use them.

kernels      which kernels are available, and what each supports
classes      attention processors, for Diffusers' layers, that choose a kernel for each call
dispatched   processors that compute by one of Diffusers' kernels
processors   which processors the layers of a model have, and the choice of others
report       which kernel each layer uses, as a table
"""
