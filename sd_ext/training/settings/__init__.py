"""How settings are written down, and how they get there: one setting = one flag = one line of help.

setting     a setting, and a group of them; groups lie beside what reads them
config      all groups of a script, and their settings by name
command     from a command line and a file to a config
"""
