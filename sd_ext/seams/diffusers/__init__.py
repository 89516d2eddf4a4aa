"""Diffusers' private parts.

records     what saved pipelines, configs and adapters record, and what Diffusers looks up by it
unets       blocks of a U-Net, and what pipelines have changed in them
attention   attention layers and their processors
pipelines   the pipeline that is calling a network
"""
