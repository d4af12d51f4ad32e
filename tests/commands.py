"""The `layerskip-vllm` command installed beside this Python."""

import sys
from pathlib import Path

LAYERSKIP_VLLM = str(Path(sys.executable).with_name("layerskip-vllm"))
