#!/usr/bin/env bash
# Serve tensor parallel on a Ray cluster: RAY_ADDRESS=HEAD:6379 examples/ray/serve.sh MODEL E [TP] [...]
# Run it on a node of the cluster; MODEL must exist under the same path on every node. Further arguments
# go to vllm serve. Then, in another shell: python examples/client.py
# Exits with 0 only after a signal. vLLM 0.32 itself also exits with 0 when its engine dies.
set -euo pipefail

MODEL=${1:?usage: serve.sh MODEL E [TP] [arguments of vllm serve ...]}
EXIT_LAYER=${2:?usage: serve.sh MODEL E [TP] [arguments of vllm serve ...]}
: "${RAY_ADDRESS:?set it to the address of the cluster, HEAD:6379}"

# Set the trap before the server starts: a signal in between would leave the server running.
SERVER="" SIGNALLED=""
trap 'SIGNALLED=1; [ -z "$SERVER" ] || kill -TERM "$SERVER" || :' TERM INT

vllm serve "$MODEL" \
  --served-model-name layerskip \
  --speculative-model "self:$EXIT_LAYER" \
  --tensor-parallel-size "${3:-2}" \
  --distributed-executor-backend ray \
  --port "${PORT:-8000}" \
  "${@:4}" &
SERVER=$!
[ -z "$SIGNALLED" ] || kill -TERM "$SERVER" || :

STATUS=0
wait "$SERVER" || STATUS=$?
if [ -n "$SIGNALLED" ]; then
  # A signal interrupts `wait`, not the server.
  STATUS=0
  wait "$SERVER" || STATUS=$?
  while kill -0 "$SERVER" 2>/dev/null; do
    STATUS=0
    wait "$SERVER" || STATUS=$?
  done
  exit "$STATUS"
fi
exit $((STATUS == 0 ? 1 : STATUS))
