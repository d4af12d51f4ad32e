#!/usr/bin/env bash
# Serve with self-speculation: examples/serve.sh [MODEL] [E] [more arguments of vllm serve ...]
# Without arguments it uses SmolLM2-135M-Instruct. Then, in another shell: python examples/client.py
set -euo pipefail

PYTHON=${PYTHON:-python}
MODEL=${1:-$("$PYTHON" -c 'from layerskip_vllm.demo import smollm2; print(smollm2.prepare())')}
EXIT_LAYER=${2:-20}

exec "$(dirname "$(command -v "$PYTHON")")/vllm" serve "$MODEL" \
  --served-model-name layerskip \
  --speculative-model "self:$EXIT_LAYER" \
  --num-speculative-tokens 4 \
  --max-model-len 1024 \
  --port "${PORT:-8000}" \
  "${@:3}"
