"""What encoders make of pictures and texts, kept in content-addressed caches.

encoded   latents and text states for a run, from the cache where they are there
cache     the files of a cache
keys      what identifies an entry: the encoder's weights and the content that was encoded
"""
