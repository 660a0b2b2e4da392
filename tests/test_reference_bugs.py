"""The page of reference bugs: every demonstration runs, and shows what it says."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "notebooks" / "reference_bugs.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SECTIONS = {text.partition("\n")[0]: text for text in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]}
[SETUP] = BLOCK.findall(PAGE[: PAGE.index("\n### ")])


@pytest.mark.parametrize("title", SECTIONS)
def test_the_demonstration_runs(title):
    [block] = BLOCK.findall(SECTIONS[title])
    namespace = {}
    exec(compile(SETUP, "setup", "exec"), namespace)
    exec(compile(block, title, "exec"), namespace)


@pytest.mark.parametrize("title", SECTIONS)
def test_the_section_is_whole(title):
    section = re.split(r"^## ", SECTIONS[title], flags=re.MULTILINE)[0]
    place, rest = section.split("*Where:*")[1].split("\n\n", 1)
    assert re.match(r" `[\w.-]+/[\w.-]+`, `[\w./]+\.py`", place), "repository and file come first"
    [block] = BLOCK.findall(rest)
    assert re.search(r"^assert ", block, re.MULTILINE)
    assert max(map(len, block.splitlines())) <= 100
    assert rest.rsplit("```\n", 1)[1].strip().startswith("*In pai_lab:*")


def test_no_title_twice():
    assert len(SECTIONS) == len(re.findall(r"^### ", PAGE, re.MULTILINE))
