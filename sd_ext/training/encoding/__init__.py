"""Encodes pictures to latents and texts to states, and caches the results on disk.

encoded    the latents and text states of a run, read from the cache or encoded if missing
cache      a folder of cache entries, each a safetensors file
keys       names of entries: a digest of the encoder's weights and of the content that was encoded
settings   the settings of the cache
"""
