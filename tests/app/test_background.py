"""Work in threads: what is there so far can be read, an end before its time, errors as sentences."""

import threading

from llmfast.app.background import Background, Piece, Reply, Token


def test_a_reply_grows_and_can_be_stopped():
    go, closed = threading.Semaphore(0), []

    def stream():
        try:
            for number in range(100):
                go.acquire()
                yield Piece(f"{number} ", (Token(f"{number} ", 0.5),))
        finally:
            closed.append(True)

    reply = Reply(stream)
    assert not reply.is_done
    go.release()
    while not reply.tokens:
        pass
    reply.stop()
    go.release()
    reply.wait(10)
    assert reply.is_done
    assert reply.was_stopped
    assert reply.text == "0 1 "
    assert closed == [True]  # the server is told that nobody reads any more


def test_errors_are_sentences():
    def fail():
        raise ValueError("the prompt\nis too long")

    work = Background(fail)
    work.wait(10)
    assert work.error == "the prompt is too long"
    assert work.result is None
