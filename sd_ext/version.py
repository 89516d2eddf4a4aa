"""The version of the package, for those below `sd_ext` itself."""

__version__ = "0.1.0"
