"""``llmfast serve`` on the run of a classifier: its answers, and what it refuses."""

import pytest
from fastapi.testclient import TestClient
from small_labels import new_labels_run

from llmfast.cli import main
from llmfast.finetuning.predict import load_classifier, predict
from llmfast.finetuning.server import ClassifierService, make_classifier_app
from llmfast.training.loop import fit

TEXTS = ["I love my phone", "it is awful", ""]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    fit(new_labels_run(folder, sample_every=0))
    return folder / "run"


@pytest.fixture(scope="module")
def client(run):
    app = make_classifier_app(ClassifierService.open(run, "labels"), api_key="secret")
    with TestClient(app, headers={"Authorization": "Bearer secret"}) as found:
        yield found


def test_answers_are_those_of_predict(client, run):
    answer = client.post("/classify", json={"model": "labels", "input": TEXTS})
    assert answer.status_code == 200
    found = answer.json()["data"]
    expected = list(predict(*load_classifier(run), TEXTS))
    assert [each["label"] for each in found] == [each.label for each in expected]
    for index, (each, wanted) in enumerate(zip(found, expected, strict=True)):
        assert each["index"] == index
        assert each["probabilities"] == wanted.probabilities
        assert each["probs"] == list(wanted.probabilities.values())
        assert each["num_classes"] == 2
        assert each["value"] is None


def test_one_text_need_not_be_a_list(client):
    one, several = (
        client.post("/classify", json={"model": "labels", "input": each}).json()["data"]
        for each in (TEXTS[0], TEXTS[:1])
    )
    assert one == several


def test_models_names_the_labels(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "labels"
    assert sorted(model["labels"]) == ["bad", "good"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"model": "other", "input": "a"}, 404, "there is 'labels'"),
        ({"model": "labels"}, 400, "input is missing"),
        ({"model": "labels", "input": []}, 400, "a text or a list of texts"),
        ({"model": "labels", "input": ["a", 3]}, 400, "a text or a list of texts"),
        ({"model": "labels", "input": ["a"] * 1025}, 400, "at most 1024 texts"),
        ({"model": "labels", "input": "a", "n": 2}, 400, "n is not a field"),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(client, body, status, words):
    answer = client.post("/classify", json=body)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_the_key_is_asked_for(client):
    assert client.post("/classify", json={}, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/health", headers={"Authorization": ""}).status_code == 200


@pytest.mark.parametrize(
    "options", [["--adapters", "a=b"], ["--cors", "*"], ["--dtype", "bfloat16"], ["--weights", "int8"]]
)
def test_options_of_language_models_are_refused(run, options, capsys):
    """Trap: an option that is silently ignored."""
    assert main(["serve", str(run), "--port", "0", *options]) == 2
    error = capsys.readouterr().err
    assert f"{options[0].removeprefix('--')} is for language models" in error
    assert error.count("\n") == 1
