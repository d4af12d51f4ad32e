"""Drive a server or an engine and measure it: demo, tests and benchmarks share these."""
