"""Every page, run by Streamlit's own test harness: on an empty folder, on a full one, and with bad input."""

import re
import shutil
import sys
import time

import pytest
from small_app import damage_run
from small_finetuned import ADAPTERS, write_finetuned

pytest.importorskip("streamlit")

import streamlit as st
from streamlit.logger import set_log_level
from streamlit.testing.v1 import AppTest

from llmfast import cli
from llmfast.app import widgets
from llmfast.app.views import PAGES

set_log_level("error")  # it warns that there is no browser
pytestmark = pytest.mark.xdist_group("app")
NAMES = [page.name for page in PAGES]
SCRIPT = """
from llmfast.app.views import PAGES
from llmfast.app.widgets import in_a_sentence, loaded_models
with in_a_sentence():
    next(page for page in PAGES if page.name == "{name}").show()
loaded_models()
"""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """No test sees the folder of another."""
    st.cache_data.clear()
    monkeypatch.setattr(sys, "argv", list(sys.argv))


@pytest.fixture(scope="module", autouse=True)
def _servers():
    yield
    widgets.servers().close()


def open_page(name, folder):
    """A page as it opens; no page may end with an exception."""
    sys.argv[:] = ["main.py", str(folder)]
    page = AppTest.from_string(SCRIPT.format(name=name), default_timeout=60).run()
    assert not page.exception, page.exception
    return page


def until(page, condition, seconds=120):
    """Run the page again until something is true of it."""
    end = time.monotonic() + seconds
    while not condition(page):
        assert time.monotonic() < end, [each.value for each in page.caption]
        time.sleep(0.2)
        page.run()
        assert not page.exception, page.exception
    return page


def choose(page, label, value):
    (widget,) = [each for each in (*page.multiselect, *page.selectbox) if each.label.startswith(label)]
    widget.set_value(value)


def most_tokens(page, count):
    (widget,) = [each for each in page.number_input if each.label == "Most tokens"]
    widget.set_value(count)


def html_of(page):
    """The tokens that are drawn."""
    return [each.proto.body for each in page.get("html") if 'class="tokens"' in each.proto.body]


def tables_of(page):
    """The cells of each table, row by row."""
    bodies = [each.proto.body for each in page.get("html") if 'class="rows"' in each.proto.body]
    return [
        [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", body)]
        for body in bodies
    ]


def press(page, label):
    (button,) = [each for each in page.button if each.label.startswith(label)]
    button.click().run()
    assert not page.exception, page.exception
    return page


@pytest.mark.parametrize("name", NAMES)
def test_a_page_of_an_empty_folder_says_which_command_makes_what_is_missing(name, tmp_path, capsys):
    """Trap: a page that names a command or an option that is not there."""
    page = open_page(name, tmp_path)
    if name == "tokenizer":  # published encodings are everywhere
        assert page.multiselect[0].options[:1]
        return
    assert "There is no" in page.info[0].value
    lines = page.code[0].value.splitlines()
    assert lines
    for line in lines:
        program, *words = line.split()
        command = next(name for name in (" ".join(words[:2]), words[0]) if name in cli.COMMANDS)
        assert program == "llmfast"
        if not cli.COMMANDS[command].own_arguments:
            with pytest.raises(SystemExit):
                cli.main([*command.split(), "--help"])
            assert set(re.findall(r"--[\w.]+", line)) <= set(re.findall(r"--[\w.]+", capsys.readouterr().out))


@pytest.mark.parametrize("name", NAMES)
def test_a_page_of_a_full_folder_opens(name, full):
    page = open_page(name, full)
    assert page.title[0].value == next(each.title for each in PAGES if each.name == name)
    assert not page.error
    assert not [each for each in page.info if "There is no" in each.value]


def test_runs_shows_what_compare_shows(full):
    page = open_page("runs", full)
    ((names, *rows),) = tables_of(page)
    assert names[:3] == ["run", "kind", "steps"]
    assert {row[0] for row in rows} == {str(full / "tiny" / "run"), str(full / "labels" / "run")}
    assert any("width: 16" in each.value for each in page.code)


def test_a_damaged_run_is_one_sentence_and_the_others_are_shown(full, tmp_path):
    for name in ("whole", "broken"):
        shutil.copytree(full / "tiny" / "run", tmp_path / name)
    damage_run(tmp_path / "broken")
    page = open_page("runs", tmp_path)
    (error,) = page.error
    assert "summary.json is damaged" in error.value
    assert "\n" not in error.value
    assert len(tables_of(page)[0]) == 2


def test_generating_shows_probabilities_and_stays_through_re_runs(full):
    widgets.servers().close()  # those that other tests have loaded are shown, too
    page = open_page("generate", full)
    choose(page, "Models", ["tiny/run", "models/chat"])
    page.text_area[0].set_value("The fox")
    most_tokens(page, 6)
    press(page, "Generate")
    until(page, lambda page: sum("tokens, as many as asked for" in each.value for each in page.caption) == 2)
    first = html_of(page)
    assert len(first) == 2
    assert all(re.search(r'data-note="[^"]* \d+\.\d%; likeliest: ', each) for each in first)
    assert html_of(page.run()) == first  # nothing is generated again
    assert [len(each) for each in tables_of(page)] == [7, 7]
    assert sum("Unload" in each.label for each in page.button) == 2
    press(page, "Unload run")
    assert sum("Unload" in each.label for each in page.button) == 1


def test_pages_show_finetuned_models(tmp_path):
    """Trap: an adapter whose base a page does not find, or a classifier by adapters among the language models."""
    write_finetuned(tmp_path)
    page = open_page("generate", tmp_path)
    choose(page, "Models", ["sft-lora/run", "sft-qlora/run"])
    page.text_area[0].set_value("The fox")
    most_tokens(page, 3)
    press(page, "Generate")
    until(page, lambda page: len([each for each in page.caption if "as many as asked for" in each.value]) == 2)
    assert len(html_of(page)) == 2

    page = open_page("chat", tmp_path)
    choose(page, "Model", "sft-qlora/run")
    most_tokens(page, 3)
    page.run()
    page.chat_input[0].set_value("Say in capitals: fox").run()
    until(page, lambda page: len(page.chat_message) == 2 and not page.chat_input[0].disabled)

    page = open_page("classify", tmp_path)
    choose(page, "Classifiers", [f"labels-{name}/run" for name in ADAPTERS])
    page.text_area[0].set_value("I love my phone")
    press(page, "Classify")
    until(page, lambda page: len(page.metric) == 3)
    assert len(page.get("progress")) == 6

    page = open_page("attention", tmp_path)
    choose(page, "Model", "sft-qlora/run")
    page.text_area[0].set_value("The fox")
    press(page, "Look")
    until(page, lambda page: page.get("iframe") or page.error)
    assert not page.error

    for name in ("runs", "evaluate", "data", "tokenizer"):
        assert not open_page(name, tmp_path).error


def test_a_prompt_over_the_context_is_one_sentence(full):
    page = open_page("generate", full)
    choose(page, "Models", ["models/chat"])
    page.text_area[0].set_value("The fox saw the heron. " * 60)
    press(page, "Generate")
    until(page, lambda page: len(page.error) == 1)
    assert "context" in page.error[0].value
    assert "\n" not in page.error[0].value
    page.text_area[0].set_value("")
    press(page, "Generate")
    assert "The prompt is empty" in page.error[0].value


def test_a_damaged_model_is_one_sentence(full, tmp_path):
    shutil.copytree(full / "tiny" / "run", tmp_path / "run")
    damage_run(tmp_path / "run")
    page = press(open_page("generate", tmp_path), "Generate")
    until(page, lambda page: len(page.error) == 1)
    assert "cannot be loaded" in page.error[0].value
    assert "damaged" in page.error[0].value
    assert "\n" not in page.error[0].value


def test_chat_answers_and_says_which_models_cannot(full):
    page = open_page("chat", full)
    choose(page, "Model", "models/chat")
    most_tokens(page, 4)
    page.run()
    page.chat_input[0].set_value("Say in capitals: fox").run()
    until(page, lambda page: len(page.chat_message) == 2 and not page.chat_input[0].disabled)
    assert page.chat_message[0].text[0].value == "Say in capitals: fox"
    choose(page, "Model", "tiny/run")
    page.run()
    assert len(page.chat_message) == 0  # a conversation of its own
    page.chat_input[0].set_value("Hello").run()
    until(page, lambda page: len(page.error) == 1)
    assert "cannot chat: it has no chat template" in page.error[0].value


def test_classifying_shows_probabilities(full):
    page = open_page("classify", full)
    page.text_area[0].set_value("I love my phone")
    press(page, "Classify")
    until(page, lambda page: len(page.metric) == 1)
    assert page.metric[0].value in ("good", "bad")
    shown = [each.proto.text for each in page.get("progress")]
    assert len(shown) == 2
    assert sum(float(re.search(r"([\d.]+)%", text)[1]) for text in shown) == pytest.approx(100, abs=0.2)


def test_attention_is_drawn(full):
    page = open_page("attention", full)
    page.text_area[0].set_value("The fox")
    press(page, "Look")
    until(page, lambda page: page.get("iframe") or page.error)
    assert not page.error
    assert {each.value for each in page.header} >= {"Attention", "Heads"}
    page.text_input[0].set_value("0 first")
    press(page, "Look")
    assert page.error[0].value == "Layers are numbers from 0 with spaces between, got 'first'"


def test_tokenizers_are_compared(full):
    page = open_page("tokenizer", full)
    choose(page, "Encodings", ["tiny/run/data", "models/chat"])
    page.text_area[0].set_value("<b>fox & 雪</b>\n")
    page.run()
    ((_, *rows),) = tables_of(page)
    assert [row[0] for row in rows] == ["tiny/run/data", "models/chat"]
    assert all("&lt;" in each and "<b>" not in each for each in html_of(page))


def test_data_shows_report_and_documents(full):
    page = open_page("data", full)
    assert tables_of(page)[0][1][0] == "documents"
    choose(page, "Folder", "tiny/run/data")
    page.number_input[0].set_value(3).run()
    assert any("The " in each.value for each in page.code)


def test_evaluate_and_benchmarks_show_their_rows(full):
    page = open_page("evaluate", full)
    assert "perplexity" in [row[1] for row in tables_of(page)[0]]
    page = open_page("benchmarks", full)
    assert "llmfast" in [row[0] for row in tables_of(page)[0]]
