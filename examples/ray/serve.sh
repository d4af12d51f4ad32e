#!/usr/bin/env bash
# Serve tensor parallel on a Ray cluster: RAY_ADDRESS=HEAD:6379 examples/ray/serve.sh MODEL E [TP] [...]
# Run it on a node of the cluster; MODEL must lie under the same path on every node. Further
# arguments are vllm serve's. Then, elsewhere: python examples/client.py
# Ends with 0 only where it was told to: vLLM 0.32 itself does so when its engine dies, too.
set -euo pipefail

MODEL=${1:?usage: serve.sh MODEL E [TP] [arguments of vllm serve ...]}
EXIT_LAYER=${2:?usage: serve.sh MODEL E [TP] [arguments of vllm serve ...]}
: "${RAY_ADDRESS:?set it to the address of the cluster, HEAD:6379}"

# The trap stands before the server does: a signal in between would leave the server behind.
SERVER="" TOLD_TO=""
trap 'TOLD_TO=1; [ -z "$SERVER" ] || kill -TERM "$SERVER" || :' TERM INT

vllm serve "$MODEL" \
  --served-model-name layerskip \
  --speculative-model "self:$EXIT_LAYER" \
  --tensor-parallel-size "${3:-2}" \
  --distributed-executor-backend ray \
  --port "${PORT:-8000}" \
  "${@:4}" &
SERVER=$!
[ -z "$TOLD_TO" ] || kill -TERM "$SERVER" || :

STATUS=0
wait "$SERVER" || STATUS=$?
if [ -n "$TOLD_TO" ]; then
  # A signal ends a wait, not the server.
  STATUS=0
  wait "$SERVER" || STATUS=$?
  while kill -0 "$SERVER" 2>/dev/null; do
    STATUS=0
    wait "$SERVER" || STATUS=$?
  done
  exit "$STATUS"
fi
exit $((STATUS == 0 ? 1 : STATUS))
