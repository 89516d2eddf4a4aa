"""Attention kernels, and the processors that use them.

kernels      which kernels are available, and what each supports
processors   attention processors, for Diffusers' layers, with a selectable kernel
report       which kernel each layer uses, as a table
"""
