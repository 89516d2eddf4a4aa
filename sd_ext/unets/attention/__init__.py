"""Attention kernels, and the processors that use them.

kernels      which kernels there are here, and what each can do
processors   Diffusers' attention processors with a kernel of choice
report       what was chosen for every layer, as a table
"""
