"""Client on an emulated host: reads token prompts from standard input and prints completions.

python -m tests.parallel.ask PORT MAX_TOKENS < prompts.json
"""

import json
import sys

from openai import OpenAI


def main() -> None:
    client = OpenAI(base_url=f"http://127.0.0.1:{sys.argv[1]}/v1", api_key="none", max_retries=0)
    for prompt in json.load(sys.stdin):
        stream = client.completions.create(
            model="layerskip",
            prompt=prompt,
            max_tokens=int(sys.argv[2]),
            temperature=0,
            stream=True,
            extra_body={"return_token_ids": True, "ignore_eos": True},
        )
        token_ids: list[int] = []
        for chunk in stream:
            token_ids += chunk.choices[0].token_ids or []
            print(f"{len(token_ids)} tokens", file=sys.stderr, flush=True)
        print(json.dumps(token_ids), flush=True)


if __name__ == "__main__":
    main()
