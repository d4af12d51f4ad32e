"""`make gpu-check`: exactness, speed and CUDA graphs of `self:E` on one GPU, within a deadline."""
