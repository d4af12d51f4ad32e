"""Drive a server or an engine and sum up figures. Demo, sweep, tests and benchmarks share these.

Nothing here imports the rest of the package: benchmarks of another checkout use these modules.
"""
