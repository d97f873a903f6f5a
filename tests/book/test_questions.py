"""Every question of the page has an answer, the place where it is derived, and a cell that could fail."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "book" / "questions.md"
QUESTIONS = PAGE.read_text(encoding="utf-8").split("\n### ")[1:]


def test_there_are_many_and_each_is_asked_once():
    asked = [question.splitlines()[0] for question in QUESTIONS]
    assert len(asked) == len(set(asked)) >= 24


@pytest.mark.parametrize("question", QUESTIONS, ids=[q.splitlines()[0] for q in QUESTIONS])
def test_a_question_is_answered_placed_and_shown(question):
    pattern = r"[^\n]+\n\n(.+?)\n\n```\{code-cell\} ipython3\n(.+?)```.*"
    answer, cell = re.fullmatch(pattern, question, re.DOTALL).groups()
    text, link = re.fullmatch(r"(.+?) → \[[^]]+\]\(([^)]+)\)[^\n]*", answer, re.DOTALL).groups()
    assert len(re.findall(r"[.?](?=\s|$)", text)) <= 3, "in three sentences"
    assert (PAGE.parent / link).resolve().is_file(), link
    assert re.search(r"^\s*(assert|raise) ", cell, re.MULTILINE)
