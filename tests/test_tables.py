"""Reports are text in a terminal and escaped HTML in a notebook, from the same rows."""

from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from fastlora import LoRAConfig, add_adapter, apply_lora, parameter_report
from fastlora.accounting.budget import training_budget
from fastlora.accounting.explain import explain_problem
from fastlora.analysis import Similarity, adapter_similarity, update_report
from fastlora.formula.cost import Problem
from fastlora.info import collect_info
from fastlora.parallel.memory import memory_per_gpu
from fastlora.tables import Table, as_html, as_text
from tests.models import adapted, mlp

HOSTILE = "<img src=x onerror=alert(1)>&"


class Reader(HTMLParser):
    """What a browser would make of it: tags and words."""

    def __init__(self):
        super().__init__()
        self.tags, self.words = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.words += data.split()


def read(html):
    reader = Reader()
    reader.feed(html)
    return reader


def similarity():
    model = adapted(mlp())
    add_adapter(model, "other", LoRAConfig(r=2))
    return adapter_similarity(model, "default", "other")


REPORTS = {
    "parameters": lambda: parameter_report(adapted(mlp())),
    "updates": lambda: update_report(adapted(mlp())),
    "similarity": similarity,
    "budget": lambda: training_budget(mlp(), LoRAConfig(r=1), lambda m: m(torch.ones(2, 6))),
    "memory": lambda: memory_per_gpu(mlp()),
    "info": collect_info,
    "explanation": lambda: explain_problem(Problem(8, 8, 8, 2, torch.float32, torch.float32), gpu="H200"),
}


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS)
def test_a_report_says_the_same_words_as_text_and_as_html(make):
    report = make()
    words = [word for word in str(report).split() if set(word) != {"-"}]
    read_words = read(report._repr_html_())
    assert read_words.words == words
    assert read_words.tags <= {"table", "thead", "tbody", "tr", "th", "td", "div"}


def test_a_hostile_name_stays_text():
    model = apply_lora(nn.ModuleDict({HOSTILE: nn.Linear(3, 2)}), LoRAConfig(r=1))
    add_adapter(model, "b", LoRAConfig(r=1))
    for report in (
        parameter_report(model),
        update_report(model),
        Similarity({HOSTILE: torch.ones(1, 1)}),
    ):
        html = report._repr_html_()
        assert "<img" not in html
        assert "&lt;img src=x onerror=alert(1)&gt;&amp;" in html
        assert HOSTILE in str(report)


def test_pefts_swap_report_is_html_too():
    peft = pytest.importorskip("fastlora.integrations.peft")
    html = peft.SwapReport((), {}, {HOSTILE: "it is <b>"})._repr_html_()
    assert not {"img", "b"} & read(html).tags


def test_words_stand_left_and_numbers_right():
    table = Table(("name", "n"), [("a", "1"), ("long name", "1,000")])
    assert as_text(["above", table]).splitlines() == [
        "above",
        "name           n",
        "----------------",
        "a              1",
        "long name  1,000",
    ]
    assert '<td style="text-align: right">1,000</td>' in as_html([table])
