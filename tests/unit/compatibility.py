"""Write the table of features in docs/compatibility.md: `python -m tests.unit.compatibility`.

The data is docs/data/compatibility.yaml. A unit test fails if the table is stale.
"""

import yaml

from tests.unit.doc_blocks import ROOT

DATA = ROOT / "docs" / "data" / "compatibility.yaml"
PAGE = ROOT / "docs" / "compatibility.md"
BEGIN = "<!-- features: python -m tests.unit.compatibility -->"
END = "<!-- end of features -->"

STATUSES = ("works", "partly", "no effect", "refused", "not run")
COLUMNS = ("Feature", "vLLM", "V1, on a CPU", "V2, interpreted on a CPU", "Test, under `tests/`")


def read_features() -> list[dict]:
    return yaml.safe_load(DATA.read_text(encoding="utf-8"))


def table(features: list[dict]) -> str:
    """The features as a Markdown table."""
    header = [" | ".join(COLUMNS), "|".join(["---"] * len(COLUMNS))]
    rows = [
        " | ".join(
            [
                feature["feature"],
                ", ".join(feature["vllm"]),
                status(feature, "v1"),
                status(feature, "v2"),
                named(feature["tests"]),
            ]
        )
        for feature in features
    ]
    return "\n".join([f"| {header[0]} |", f"|{header[1]}|", *(f"| {row} |" for row in rows)])


def status(feature: dict, runner: str) -> str:
    """What a runner does with a feature, with its note if there is one."""
    value, note = feature[runner], feature.get(f"{runner}_note")
    text = "refused at start" if value == "refused" else value
    return f"{text}: {note}" if note else text


def named(tests: list[str]) -> str:
    """The tests as code; a test in the file of the one before it goes without the file."""
    texts, last = [], ""
    for test in tests:
        file, _, name = test.partition("::")
        texts.append(f"`::{name}`" if file == last else f"`{test}`")
        last = file
    return ", ".join(texts)


def updated(page: str) -> str:
    """The page with its table up to date."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"{PAGE} has no marker {BEGIN}"
    assert end, f"{PAGE} has no marker {END}"
    return f"{before}{BEGIN}\n\n{table(read_features())}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
