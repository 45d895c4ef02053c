"""Commands of ``icl-eval``, a module each."""
