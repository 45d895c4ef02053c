"""Our tasks as lm-eval reads them: a YAML file each, found through ``--include_path``."""
