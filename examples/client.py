"""Stream a completion from the server of examples/serve.sh: python examples/client.py [PROMPT]."""

import os
import sys

from openai import OpenAI


def main() -> None:
    prompt = sys.argv[1] if len(sys.argv) > 1 else "def quicksort(items):"
    client = OpenAI(
        base_url=f"http://127.0.0.1:{os.environ.get('PORT', '8000')}/v1", api_key="none"
    )
    stream = client.completions.create(
        model="layerskip", prompt=prompt, max_tokens=64, temperature=0, stream=True
    )
    print(prompt, end="")
    for chunk in stream:
        print(chunk.choices[0].text, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
