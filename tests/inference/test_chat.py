"""``llmfast chat``: a conversation in memory, and one in a terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from small_server import chat_tokenizer, small_model, write_chat_model
from small_sft import write_model

from llmfast.cli import main
from llmfast.inference.chat import Chat
from llmfast.inference.config import EngineConfig
from llmfast.inference.engine import Engine


def silent(text):
    pass


def new_chat(system="", context=512, **settings):
    model = small_model(chat_tokenizer(), context=context)
    engine = Engine(model, chat_tokenizer(), EngineConfig(max_batch=1))
    return Chat(engine, system, **{"temperature": 0.0, "max_tokens": 10} | settings)


def test_what_is_shown_is_the_answer_and_becomes_a_turn():
    chat, shown = new_chat("Be brief."), []
    answer = chat.answer("red", shown.append)
    assert "".join(shown) == answer.text
    assert [turn["role"] for turn in chat.turns] == ["user", "assistant"]
    assert chat.turns[1]["content"] == answer.text
    assert (answer.tokens, answer.interrupted, answer.dropped, answer.filled) == (10, False, 0, False)


def test_the_answer_is_that_to_the_whole_conversation():
    chat = new_chat("Be brief.")
    chat.answer("red", silent)
    second = chat.answer("green", silent)
    other = new_chat("Be brief.")
    other.turns = chat.turns[:2]
    assert other.answer("green", silent).text == second.text
    assert new_chat("Be brief.").answer("green", silent).text != second.text


def test_a_seed_gives_the_same_conversation_and_a_retry_another_answer():
    settings = {"temperature": 1.0, "seed": 7}
    one, two = new_chat(**settings), new_chat(**settings)
    assert one.answer("red", silent).text == two.answer("red", silent).text
    first = one.turns[1]["content"]
    assert one.take_back() == "red"
    assert one.turns == []
    assert one.answer("red", silent).text != first


def test_an_answer_that_is_stopped_stays_as_far_as_it_went():
    chat, shown = new_chat(max_tokens=100), []
    answer = chat.answer("red", shown.append, lambda: len(shown) >= 5)
    assert answer.interrupted
    assert answer.tokens == 5
    assert chat.turns[1]["content"] == "".join(shown)
    assert chat._engine.statistics().blocks_used == 0
    assert not chat._engine.has_work
    assert not chat.answer("green", silent).interrupted


def test_whole_turns_are_left_out_when_the_context_is_full():
    chat = new_chat("Be brief.", context=128)
    dropped = [chat.answer(f"number {number} red lamp", silent).dropped for number in range(8)]
    assert dropped[0] == 0
    assert dropped[-1] > 0
    assert all(each % 2 == 0 for each in dropped)
    assert dropped == sorted(dropped)
    assert len(chat.turns) == 16, "they stay in the conversation, for /save"


def test_a_message_that_never_fits_is_refused_and_forgotten():
    chat = new_chat(context=64)
    with pytest.raises(ValueError, match="context holds 64"):
        chat.answer("lamp " * 100, silent)
    assert chat.turns == []


def test_a_full_context_cuts_an_answer_off_and_says_so():
    chat = new_chat(context=64, max_tokens=1000)
    assert chat.answer("red", silent).filled


def test_a_conversation_is_saved_and_loaded(tmp_path):
    chat = new_chat("Be brief.")
    chat.answer("ü\n<|im_end|>", silent)
    chat.save(tmp_path / "talk.json")
    other = new_chat()
    other.load(tmp_path / "talk.json")
    assert (other.system, other.turns) == (chat.system, chat.turns)
    assert other.answer("green", silent).text == chat.answer("green", silent).text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON in UTF-8"),
        (b"[]", "no messages"),
        (b'{"messages": []}', "no messages"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "take turns"),
        (b'{"messages": [{"role": "king", "content": "a"}]}', "king"),
    ],
)
def test_files_that_are_no_conversation(tmp_path, content, message):
    chat = new_chat("Be brief.")
    chat.answer("red", silent)
    before = list(chat.turns)
    file = tmp_path / "talk.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        chat.load(file)
    assert str(file) in str(error.value)
    assert (chat.system, chat.turns) == ("Be brief.", before)


def test_a_model_without_a_template_is_refused(tmp_path, capsys):
    assert main(["chat", str(write_model(tmp_path / "plain"))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no chat template" in line
    assert "llmfast sft" in line


# --- in a terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """``llmfast chat`` in a pseudo-terminal."""

    def __init__(self, *arguments):
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmfast.cli", "chat", *map(str, arguments)],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=os.environ | {"TERM": "dumb"},
        )  # fmt: skip
        os.close(theirs)
        self._unread = ""

    def until(self, pattern, seconds=120):
        """What is shown up to where a pattern fits."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self._unread)):
            assert time.monotonic() < end, f"{pattern!r} is not in {self._unread!r}"
            if select.select([self._ours], [], [], 0.2)[0]:
                self._unread += os.read(self._ours, 65536).decode(errors="replace")
        before, self._unread = self._unread[: found.end()], self._unread[found.end() :]
        return before

    def write(self, text):
        os.write(self._ours, text.encode())

    def interrupt(self):
        """Ctrl-C; the signal itself, since the terminal controls no session here."""
        self.process.send_signal(signal.SIGINT)

    def interrupt_until(self, pattern):
        """Ctrl-C, again each second: Python's reading of a line misses one that comes right behind the prompt."""
        end = time.monotonic() + 120
        while True:
            self.interrupt()
            try:
                return self.until(pattern, seconds=1)
            except AssertionError:
                if time.monotonic() > end:
                    raise

    def end(self):
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


PROMPT = "> "
DONE = "per second"


def test_a_conversation_in_a_terminal(tmp_path):
    folder = write_chat_model(tmp_path / "small", context=8192)
    terminal = Terminal(folder, "--temperature", 0, "--tokens", 6, "--system", "Be brief.")
    try:
        terminal.until("/help lists")
        terminal.until(PROMPT)
        terminal.write("red\n")
        assert "6 tokens" in terminal.until(DONE)
        terminal.write("/edit\n")
        terminal.until(r"> (\x1b\[0m)?red$")  # what was said is there to be changed
        terminal.write("dish\n")
        terminal.until(DONE)
        terminal.write("/retry\n")
        terminal.until(DONE)
        terminal.write(f"/save {tmp_path / 'talk.json'}\n")
        terminal.until("saved in")
        saved = json.loads((tmp_path / "talk.json").read_text())["messages"]
        assert [turn["role"] for turn in saved] == ["system", "user", "assistant"]
        assert saved[1]["content"] == "reddish"
        terminal.write("/system Be long.\n")
        terminal.until("system: Be long.")
        terminal.write("/nonsense\n")
        terminal.until("/nonsense is not a command")
        terminal.write("/reset\n")
        terminal.until("a new conversation")
        terminal.write("/edit\n")
        terminal.until("nothing was said yet")
        terminal.write(f"/load {tmp_path / 'talk.json'}\n")
        terminal.until("2 turns from")
        terminal.write("/load /no/such/file\n")
        terminal.until("no such file")
        terminal.write("/help\n")
        terminal.until("Ctrl-C stops an answer")
        terminal.until(PROMPT)  # before it, the end of input would be read by nobody
        terminal.write("\x04")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.end()


def test_ctrl_c_stops_the_answer_and_not_the_program(tmp_path):
    folder = write_chat_model(tmp_path / "small", context=60_000, layers=2)
    terminal = Terminal(folder, "--temperature", 0)
    try:
        terminal.until(PROMPT)
        terminal.write("red\n")
        terminal.until("red\r\n..")  # the answer has begun
        terminal.interrupt()
        terminal.until("stopped; [0-9,]+ tokens")
        terminal.until(PROMPT)
        terminal.interrupt_until("Ctrl-D ends")  # with nothing to stop
        terminal.until(PROMPT)
        terminal.write("/quit\n")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.end()
