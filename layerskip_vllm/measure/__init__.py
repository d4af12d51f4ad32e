"""Drive a server or an engine. The demo, the tests and the benchmarks share these.

Nothing here imports the rest of the package: benchmarks of another checkout use these modules.
"""
