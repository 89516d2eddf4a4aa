"""Settings: how they are declared, and read from the command line and TOML files. One setting is one flag.

setting     declares a setting, and groups of settings; each group is defined beside the code that reads it
config      all groups of a script, with access to their settings by name
command     builds a config from a command line and a file, and runs a script
"""
