"""The number of processes of each model: where it is said, and how the repository follows."""

from __future__ import annotations

from pathlib import Path

import pytest
from autogaze_backend.serving import model_repository_path
from autogaze_backend.serving.instances import INSTANCE_VARIABLES, instance_counts, with_instances
from autogaze_client._errors import InvalidInputError, ServerUnavailableError


def group(repository: Path, model: str) -> str:
    (line,) = [
        line
        for line in (repository / model / "config.pbtxt").read_text().splitlines()
        if line.startswith("instance_group")
    ]
    return line


def test_every_model_with_a_variable_is_in_the_shipped_repository(tmp_path):
    counts = dict.fromkeys(INSTANCE_VARIABLES, 7)
    made = with_instances(model_repository_path(), counts, tmp_path)
    assert {group(made, model) for model in counts} == {"instance_group [ { kind: KIND_CPU count: 7 } ]"}


def test_only_what_was_asked_for_changes_and_the_rest_is_the_repositorys_own(tmp_path):
    shipped = model_repository_path()
    made = with_instances(shipped, {"autogaze_stream": 4}, tmp_path)
    assert {path.name for path in made.iterdir()} == {
        path.name for path in shipped.iterdir() if not path.name.startswith(".")
    }
    assert (made / "autogaze_generate").resolve() == (shipped / "autogaze_generate").resolve()
    assert (made / "autogaze_stream" / "1").resolve() == (shipped / "autogaze_stream" / "1").resolve()
    own, theirs = ((folder / "autogaze_stream" / "config.pbtxt").read_text() for folder in (made, shipped))
    assert own.replace("count: 4", "count: 1") == theirs
    assert own != theirs


def test_clips_are_handed_out_one_at_a_time_where_several_instances_take_them(tmp_path):
    """A batch goes to one instance whole: the other would wait beside it."""
    shipped = (model_repository_path() / "autogaze_generate" / "config.pbtxt").read_text()
    made = with_instances(model_repository_path(), {"autogaze_generate": 2, "autogaze_stream": 2}, tmp_path)
    clips, streams = (
        (made / f"autogaze_{name}" / "config.pbtxt").read_text() for name in ("generate", "stream")
    )
    assert ("max_batch_size: 1\n" in clips, "max_batch_size: 1\n" in shipped) == (True, False)
    assert clips.replace("count: 2", "count: 1").replace("size: 1\n", "size: 16\n", 1) == shipped
    assert "max_batch_size: 256\n" in streams


def test_the_same_numbers_give_the_same_folder_and_others_another(tmp_path):
    shipped = model_repository_path()
    first = with_instances(shipped, {"autogaze_stream": 2}, tmp_path)
    assert with_instances(shipped, {"autogaze_stream": 2}, tmp_path) == first
    assert with_instances(shipped, {"autogaze_stream": 3}, tmp_path) != first
    assert not list(tmp_path.glob(".*")), "something unfinished was left"


@pytest.mark.parametrize("counts", [{}, {"autogaze_stream": 1}, {"no_such_model": 3}])
def test_a_repository_that_is_as_it_should_be_is_served_itself(counts, tmp_path):
    assert with_instances(model_repository_path(), counts, tmp_path) == model_repository_path()
    assert not list(tmp_path.iterdir())


def test_a_configuration_of_another_form_is_refused(tmp_path):
    model = tmp_path / "models" / "autogaze_stream"
    model.mkdir(parents=True)
    (model / "config.pbtxt").write_text("instance_group [ { kind: KIND_GPU gpus: [ 0, 1 ] } ]\n")
    with pytest.raises(InvalidInputError, match=r"has 0 lines like.*AUTOGAZE_STREAM_INSTANCES not at all"):
        with_instances(tmp_path / "models", {"autogaze_stream": 2}, tmp_path / "made")


def test_a_folder_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ServerUnavailableError, match="AUTOGAZE_CACHE"):
        with_instances(model_repository_path(), {"autogaze_stream": 2}, tmp_path / "taken")


def test_the_numbers_come_from_the_environment():
    said = {
        "AUTOGAZE_CLIP_INSTANCES": "2",
        "AUTOGAZE_STREAM_INSTANCES": "4",
        "AUTOGAZE_INGEST_INSTANCES": "",
    }
    assert instance_counts(said) == {"autogaze_generate": 2, "autogaze_stream": 4}


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_number_that_is_none_is_refused(text):
    with pytest.raises(InvalidInputError, match=f"AUTOGAZE_STREAM_INSTANCES is '{text}'"):
        instance_counts({"AUTOGAZE_STREAM_INSTANCES": text})
