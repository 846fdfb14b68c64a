"""Records of every form become conversations; what is wrong is named with its file and record."""

import json

import pytest

from llmfast.data.chat.records import read_conversations

ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}
DOLLY = {"instruction": "Add.", "context": "", "response": "3", "category": "open_qa"}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
PROMPT = {"prompt": "1 + 2 =", "completion": " 3"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": [2]}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
OPENAI = {
    "messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Add 1 "}, {"type": "text", "text": "and 2."}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
        {"role": "assistant", "content": "Three."},
    ],
    "tools": [TOOL],
}


def read(*sources, **options):
    return list(read_conversations([str(source) for source in sources], **options))


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def roles(conversation):
    return [message["role"] for message in conversation.messages]


@pytest.mark.parametrize(
    ("record", "form", "contents"),
    [
        (ALPACA, "alpaca", ["Add.\n\n1 2", "3"]),
        (ALPACA | {"input": None}, "alpaca", ["Add.", "3"]),
        (DOLLY, "dolly", ["Add.", "3"]),
        (DOLLY | {"context": "1, 2"}, "dolly", ["Add.\n\n1, 2", "3"]),
        (SHAREGPT, "sharegpt", ["Hi", "Hello"]),
        (SHAREGPT | {"system": "Be brief."}, "sharegpt", ["Be brief.", "Hi", "Hello"]),
        (PROMPT, "prompt", ["1 + 2 =", " 3"]),
        ({"question": "1 + 2?", "answer": "<<1+2=3>>3\n#### 3"}, "question", ["1 + 2?", "<<1+2=3>>3\n#### 3"]),
        (
            {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]},
            "prompt",
            ["Hi", "Hello"],
        ),
        (OPENAI, "messages", ["Be brief.", "Add 1 and 2.", "", "3", "Three."]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_form_is_recognized_by_its_columns_and_said(tmp_path, record, form, contents):
    lines = []
    ((where, found),) = read(write(tmp_path / "a.jsonl", record), report=lines.append)
    assert lines == [f"form        {form}, recognized by the columns {', '.join(record)} of {tmp_path / 'a.jsonl'}"]
    assert where == f"{tmp_path / 'a.jsonl'}:1"
    assert [message["content"] for message in found.messages] == contents
    assert read(tmp_path / "a.jsonl", form=form)[0][1] == found


def test_tool_calls_are_kept_with_their_arguments_as_a_table(tmp_path):
    """Trap: arguments that are JSON in a string are escaped twice by templates that write them as JSON."""
    ((_, found),) = read(write(tmp_path / "a.jsonl", OPENAI))
    assert roles(found) == ["system", "user", "assistant", "tool", "assistant"]
    function = {"name": "add", "arguments": {"a": 1, "b": [2]}}
    assert found.messages[2]["tool_calls"] == [{"id": "call_1", "type": "function", "function": function}]
    assert found.messages[3]["tool_call_id"] == "call_1"
    assert found.tools == (TOOL,)
    old = {"role": "assistant", "content": None, "function_call": CALL["function"]}
    turns = [{"role": "user", "content": "x"}, old, {"role": "function", "name": "add", "content": "3"}]
    ((_, found),) = read(write(tmp_path / "b.jsonl", {"messages": turns, "tools": json.dumps([TOOL])}))
    assert found.messages[1]["tool_calls"][0]["function"] == function
    assert found.messages[2] == {"role": "tool", "content": "3", "name": "add"}
    assert found.tools == (TOOL,)
    calls = [
        {"from": "human", "value": "x"},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": "3"},
    ]
    ((_, found),) = read(write(tmp_path / "c.jsonl", {"conversations": calls}))
    assert roles(found) == ["user", "assistant", "tool"]
    assert found.messages[1]["tool_calls"][0]["function"] == function
    assert found.messages[1]["content"] == ""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".json.gz", ".jsonl.zst"])
def test_crlf_and_byte_order_marks_in_json(tmp_path, end, mark, suffix):
    """Trap: a file of another editor that is refused, or whose first record is lost."""
    import gzip

    records = [ALPACA, ALPACA | {"output": "a\r\nb\u2028c"}]
    lines = json.dumps(records, indent=1) if ".jsonl" not in suffix else "\n".join(map(json.dumps, records))
    content = (mark + f"{lines}\n\n".replace("\n", end)).encode()
    path = tmp_path / f"a{suffix}"
    if suffix.endswith(".zst"):
        content = pytest.importorskip("zstandard").compress(content)
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    found = [conversation for _, conversation in read(path)]
    assert [each.messages[1]["content"] for each in found] == ["3", "a\r\nb\u2028c"]


def test_json_lines_in_a_file_called_json_are_read(tmp_path):
    assert len(read(write(tmp_path / "a.json", ALPACA, ALPACA))) == 2


def test_parquet_and_datasets_and_folders_are_read(tmp_path):
    """Trap: Arrow gives each tool call the arguments of all, as nulls."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    datasets = pytest.importorskip("datasets")
    calls = [{"function": {"name": "f", "arguments": {name: 1}}} for name in ("a", "b")]
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    records = [{"messages": turns}, {"messages": turns[:1]}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "b.parquet")
    write(tmp_path / "a.jsonl", ALPACA)
    lines = []
    (_, first), (where, found), _ = read(tmp_path, report=lines.append)
    assert [line.split(",")[0].split()[-1] for line in lines] == ["alpaca", "messages"]
    assert first.messages[1]["content"] == "3"
    assert where == f"{tmp_path / 'b.parquet'}[0]"
    arguments = [call["function"]["arguments"] for call in found.messages[1]["tool_calls"]]
    assert arguments == [{"a": 1}, {"b": 1}]
    ((where, again), _) = read_conversations([datasets.Dataset.from_list(records)])
    assert (where, again) == ("Dataset[0]", found)


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([{"text": "x"}], ":1 has the columns text, which are of no known form"),
        ([ALPACA | PROMPT], ":1 has the columns of alpaca and of prompt .*: choose with data.form"),
        ([ALPACA, DOLLY], ":2 has the columns instruction, .*, but the form alpaca has instruction, output"),
        ([ALPACA, ALPACA | {"output": 3}], ":2: output is a number, not text"),
        (
            [{"messages": [{"role": "user", "content": "x"}, {"role": "clown", "content": "y"}]}],
            "message 2 has the role",
        ),
        (
            [{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}],
            "message 1 has a part that is image_url",
        ),
        ([{"messages": [{"role": "user", "content": {"a": 1}}]}], "message 1 is a table, not a list"),
        ([{"messages": [{"role": "user", "content": "x"}, {"content": "y"}]}], "message 2 has no 'role'"),
        ([SHAREGPT, {"conversations": []}], ":2 has the columns conversations, but"),
        (
            [{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}],
            "message 1: the arguments of f is not JSON|message 1: the arguments of f are not JSON",
        ),
        ([{"messages": [{"role": "user", "tool_calls": [CALL]}]}], "message 1 calls a tool, but its role is 'user'"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, records, sentence):
    file = write(tmp_path / "a.jsonl", *records)
    with pytest.raises(ValueError, match=sentence) as error:
        read(file)
    assert str(error.value).startswith(str(file))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", b"[{}, 3]", "record 1 has the columns no columns"),
        ("a.json", b'[{"prompt": "a", "completion": "b"}, 3]', "record 2 is not an object"),
        ("a.json", b'[{"prompt": }]', "is not JSON: Expecting value: line 1 column 13"),
        ("a.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt"\n', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", b'"text"\n', r"a\.jsonl:1 is not an object"),
        ("a.json", b'[{"prompt": "\xff"}]', "is not UTF-8 text"),
        ("a.jsonl", b'{"prompt": "\xff"}', r"a\.jsonl:1 is not JSON"),
        ("a.parquet", b"no", "is damaged"),
        ("a.json.gz", b"no", "is damaged"),
        ("a.txt", b"x", r"is not one of \.json, \.jsonl"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, sentence):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    with pytest.raises(ValueError, match="no file, folder or pattern match"):
        read(tmp_path / "missing.json")
