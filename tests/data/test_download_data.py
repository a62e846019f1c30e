"""scripts/download_data.sh: against a stand-in for curl that serves a file, breaks off, or finds no network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "download_data.sh"
CONTENT = bytes(range(256)) * 40
STAND_IN = r"""#!{python}
import os, sys
arguments, content = sys.argv[1:], open(os.environ["SERVED"], "rb").read()
if os.environ.get("NO_NETWORK"):
    sys.exit("curl: (6) Could not resolve host")
if "--head" in arguments:
    print("HTTP/2 302\r\ncontent-length: 5\r\n\r\nHTTP/2 200", end="\r\n")
    print("Content-Length:", os.environ.get("SIZE", len(content)), end="\r\n")
    sys.exit()
assert arguments[arguments.index("--continue-at") + 1] == "-"
with open(arguments[arguments.index("--output") + 1], "ab") as file:
    start = file.tell()
    file.write(content[start : start + int(os.environ.get("AT_MOST", len(content)))])
with open(os.environ["LOG"], "a") as log:
    log.write(f"from {{start}}\n")
sys.exit(18 if "AT_MOST" in os.environ else 0)
"""


@pytest.fixture
def download(tmp_path):
    """Runs the script with names, into a folder with a space in its name, and the stand-in's settings."""
    (tmp_path / "bin").mkdir()
    curl = tmp_path / "bin" / "curl"
    curl.write_text(STAND_IN.format(python=sys.executable))
    curl.chmod(0o755)
    (tmp_path / "served").write_bytes(CONTENT)

    def run(*names: str, **settings: str):
        path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {"PATH": path, "SERVED": str(tmp_path / "served"), "LOG": str(tmp_path / "log")}
        command = ["bash", str(SCRIPT), "--data_dir", str(tmp_path / "data dir"), *names]
        environment = {**os.environ, **own, **settings}
        return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    return run


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_whole_file(download, tmp_path):
    done = download("corpus")
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "data dir") == ["downloads/psgs_w100.tsv.gz"]
    assert (tmp_path / "data dir/downloads/psgs_w100.tsv.gz").read_bytes() == CONTENT
    assert "there already" in download("corpus", NO_NETWORK="1").stdout


def test_a_broken_download_goes_on(download, tmp_path):
    broken = download("corpus", AT_MOST="1000")
    assert broken.returncode == 1 and "the download broke off" in broken.stderr
    assert files(tmp_path / "data dir") == ["downloads/psgs_w100.tsv.gz.part"]
    assert download("corpus").returncode == 0
    assert (tmp_path / "log").read_text() == "from 0\nfrom 1000\n"
    assert (tmp_path / "data dir/downloads/psgs_w100.tsv.gz").read_bytes() == CONTENT


def test_a_wrong_size_gets_no_final_name(download, tmp_path):
    done = download("corpus", SIZE="20000")
    assert done.returncode == 1 and "has 10240 bytes, the server's file 20000" in done.stderr
    assert files(tmp_path / "data dir") == ["downloads/psgs_w100.tsv.gz.part"]


def test_a_part_that_is_too_large_is_not_used(download, tmp_path):
    part = tmp_path / "data dir/downloads/psgs_w100.tsv.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 20000)
    assert download("corpus").returncode == 0
    assert (tmp_path / "data dir/downloads/psgs_w100.tsv.gz").read_bytes() == CONTENT


def test_without_network_nothing_is_left(download, tmp_path):
    done = download("corpus", "embeddings", "HotpotQA_train", NO_NETWORK="1")
    assert done.returncode == 1
    assert "cannot be reached: no network" in done.stderr
    assert "not there: corpus embeddings HotpotQA_train" in done.stderr
    assert not (tmp_path / "data dir").exists()


@pytest.mark.parametrize(
    ("name", "encoder"), [("embeddings", "contriever-msmarco"), ("embeddings_contriever", "contriever")]
)
def test_embeddings_are_unpacked(name, encoder, download, tmp_path):
    folder = tmp_path / "wikipedia_embeddings"
    folder.mkdir()
    (folder / "passages_00").write_bytes(b"vectors")
    subprocess.run(["tar", "-cf", tmp_path / "served", "-C", tmp_path, folder.name], check=True)
    done = download(name)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "data dir") == [f"downloads/wikipedia_embeddings/{encoder}/passages_00"]
    assert "there already" in download(name, NO_NETWORK="1").stdout


def test_damaged_embeddings_get_no_final_name(download, tmp_path):
    done = download("embeddings")
    assert done.returncode == 1 and "cannot be unpacked" in done.stderr
    assert files(tmp_path / "data dir") == ["downloads/wikipedia_embeddings/contriever-msmarco.tar"]


def test_training_questions_are_converted(download, tmp_path, read_jsonl):
    (tmp_path / "served").write_text('[{"_id": "1", "question": "Q?", "answer": "a", "context": []}]')
    done = download("HotpotQA_train")
    assert done.returncode == 0, done.stderr
    found = read_jsonl(tmp_path / "data dir/questions/HotpotQA_train.jsonl")
    assert found == [{"id": "1", "question": "Q?", "answers": ["a"]}]
    assert "there already" in download("HotpotQA_train", NO_NETWORK="1").stdout


def test_sets_without_a_link(download, tmp_path, read_jsonl):
    done = download("2WikiMultiHopQA_dev")
    assert done.returncode == 1 and "StonyBrookNLP/ircot" in done.stderr
    place = tmp_path / "data dir/downloads/ircot/2wikimultihopqa/test_subsampled.jsonl"
    assert str(place) in done.stderr
    place.parent.mkdir(parents=True)
    place.write_text('{"question_id": "1", "question_text": "Q?", "answers_objects": [{"spans": ["a"]}]}\n')
    done = download("2WikiMultiHopQA_dev")
    assert done.returncode == 0 and "the paper's evaluation set of 2WikiMultiHopQA has 500" in done.stderr
    assert len(read_jsonl(tmp_path / "data dir/questions/2WikiMultiHopQA_dev.jsonl")) == 1


def test_sets_without_a_link_are_fetched_from_the_folder_that_is_named(download, tmp_path, read_jsonl):
    record = '{"question_id": "1", "question_text": "Q?", "answers_objects": [{"spans": ["a"]}]}\n'
    (tmp_path / "served").write_text(record)
    done = download("HotpotQA_dev", IRCOT_URL="http://here/ircot")
    assert done.returncode == 0, done.stderr
    assert len(read_jsonl(tmp_path / "data dir/questions/HotpotQA_dev.jsonl")) == 1


@pytest.mark.parametrize(("names", "message"), [(["nonsense"], "nonsense: no such name; one of: "), ([], "Usage")])
def test_wrong_arguments(download, names, message, tmp_path):
    done = download(*names)
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "data dir").exists()


def test_without_names_all_of_the_papers_run_is_fetched_when_that_is_confirmed(download, tmp_path):
    done = download("--yes", NO_NETWORK="1", PIP_NO_INDEX="1", GAINRAG_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1
    missing = (
        "corpus embeddings HotpotQA_dev 2WikiMultiHopQA_dev WebQuestions_test NaturalQA_test TriviaQA_test SQuAD_test"
    )
    assert done.stderr.endswith(f"not there: {missing} HotpotQA_train WebQuestions_train\n")


def test_help(download):
    done = download("--help")
    assert done.returncode == 0 and "What is fetched, by NAME" in done.stdout
