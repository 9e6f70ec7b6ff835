"""How the properties are looked for in this folder: quickly, and with no time limit for one example."""

from hypothesis import settings

# 30 examples each: the folder stays within seconds. A limit per example would fail on a busy machine.
settings.register_profile("unit", max_examples=30, deadline=None)
settings.load_profile("unit")
