"""The batch scripts, whole; and no value in them is ever anything but a value."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from slurm_cases import RECORDED, SMALL, make_config, make_jobs, make_records, make_request

from launcher.plan import plan_job
from launcher.render import clean_comment, quote_directive, quote_for_shell, render
from lmscale.config.cluster import parse_cluster
from lmscale.errors import ClusterError, ConfigError

FILES = sorted(path.name for kind in ("*.sh", "*.diff") for path in RECORDED.glob(kind))
NAMES = sorted(make_jobs())
HOSTILE = (
    "a b; touch CANARY",
    "$(touch CANARY)",
    "`touch CANARY`",
    "'; touch CANARY; '",
    '"; touch CANARY; "',
    "a\\\nb",
    "&& touch CANARY #",
    "-n",
    "--",
    "~",
    "*",
    "!!",
    "${HOME}",
    "日本 ünï",
    "a%jb%%",
    "{{ job.python }}",
)
printable = st.text().filter(lambda text: text.isprintable() and "\0" not in text)


@pytest.fixture(scope="module")
def records() -> dict[str, str]:
    return make_records()


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    return {name: render(job) for name, job in make_jobs().items()}


def test_every_recorded_script_has_its_case_and_every_case_its_script(records):
    assert sorted(records) == FILES
    assert sorted(Path(file).stem for file in FILES) == NAMES


@pytest.mark.parametrize("file", FILES)
def test_a_script_is_the_recorded_one(records, file):
    """Meant to be another? ``python tests/launcher/slurm_cases.py`` records them anew."""
    assert records[file] == (RECORDED / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_script_lists_its_sections_in_their_order(scripts, name):
    headings = re.findall(r"^# ---- (\d+\. .+) ----$", scripts[name], re.MULTILINE)
    assert [int(heading.partition(".")[0]) for heading in headings] == [
        *range(1, len(headings) + 1)
    ]
    lines = "".join(f"#   {heading}\n" for heading in headings)
    assert len(headings) >= 3 and f"# In this order:\n{lines}#\n#SBATCH" in scripts[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_bash(scripts, name):
    done = subprocess.run(
        ["bash", "-n"], input=scripts[name], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_shellcheck_has_nothing_to_say(scripts, name):
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: apt-get install shellcheck")
    done = subprocess.run(
        # A profile's own words: a file that the cluster has (SC1091), a $ as it is (SC2016).
        [shellcheck, "--shell=bash", "--norc", "--exclude=SC1091,SC2016", "-"],
        input=scripts[name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""


@pytest.mark.parametrize("name", NAMES)
def test_directives_stand_before_the_first_command(scripts, name):
    """sbatch stops looking for them there."""
    lines = scripts[name].splitlines()
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    first = next(n for n, line in enumerate(lines) if line.strip() and not line.startswith("#"))
    assert directives and max(directives) < first
    assert lines[0] == "#!/bin/bash"


@settings(max_examples=30, deadline=None)
@given(st.lists(printable, min_size=1, max_size=8))
@example(list(text for text in HOSTILE if text.isprintable()))
def test_a_quoted_word_means_itself_to_bash(words):
    script = f"printf '%s\\0' {' '.join(map(quote_for_shell, words))}"
    printed = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout
    assert printed.decode().split("\0")[:-1] == words


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\tb", "\x1b[31m", "a\0b", "a\u2028b"])
def test_a_control_character_is_refused_wherever_it_would_go(text):
    for refuse in (quote_for_shell, lambda value: quote_directive(f"--account={value}")):
        with pytest.raises(ClusterError, match="control character"):
            refuse(text)
    assert "?" in clean_comment(text) and clean_comment(text).isprintable()


@given(printable)
def test_a_directive_is_one_line_that_no_quotation_can_leave(text):
    try:
        line = quote_directive(f"--comment={text}")
    except ClusterError:
        assert set(text) & set("\"'`\\")
        return
    inner = line.removeprefix("--comment=")
    if inner.startswith('"'):
        assert inner == f'"{text}"' and '"' not in text
    else:
        assert inner == text and not set(text) & set(" #;")


@pytest.mark.parametrize("key", ["account", "partition", "qos", "constraint", "reservation"])
@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_profile_value_is_refused_or_one_quoted_value(key, text):
    try:
        cluster = parse_cluster(f"{SMALL}{key}: {json.dumps(text)}\n")
    except ConfigError as error:
        assert f"{key} = " in str(error)
        return
    script = render(plan_job(make_request(cluster), "train"))
    lines = [line for line in script.splitlines() if line.startswith(f"#SBATCH --{key}=")]
    assert lines[0] in (f'#SBATCH --{key}="{text}"', f"#SBATCH --{key}={text}") and len(lines) == 1


def run_script(script: str, folder: Path) -> dict:
    """Really run a batch script, with Slurm's commands replaced by one that writes what it got."""
    commands = folder / "bin"
    commands.mkdir()
    (commands / "srun").write_text(
        f"#!/bin/bash\nprintf '%s\\0' \"$@\" >'{folder}/argv'; env -0 >'{folder}/environ'\n"
    )
    (commands / "scontrol").write_text("#!/bin/bash\n")
    for command in commands.iterdir():
        command.chmod(0o755)
    (folder / "job.sh").write_text(script, encoding="utf-8")
    environment = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "HOME": str(folder),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURMD_NODENAME": "localhost",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "0",
        "SLURM_ARRAY_TASK_COUNT": "1",
    }
    subprocess.run(
        ["bash", str(folder / "job.sh")],
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    argv, variables = ((folder / name).read_text().split("\0")[:-1] for name in ("argv", "environ"))
    return {"argv": argv, "environ": dict(row.split("=", 1) for row in variables)}


@pytest.mark.parametrize("kind", ["train", "evaluate", "corpus"])
@pytest.mark.parametrize("text", [text for text in HOSTILE if text.isprintable()])
def test_hostile_names_are_inert_when_a_script_really_runs(tmp_path, text, kind):
    """In the run's folder, the interpreter's, variables, options and the scratch folder."""
    cluster = parse_cluster(
        f"{SMALL}preflight: {{enabled: false}}\n"
        f"variables: {{HOSTILE: {json.dumps(text)}}}\n"
        f"scratch: {json.dumps(f'/tmp/{text}')}\n"
        f"srun_options: [{json.dumps(text)}]\n"
        f"container: {{kind: apptainer, image: {json.dumps(text)}, mounts: [{json.dumps(text)}]}}\n"
        f"shared: [{json.dumps(f'/{text}')}]\n"
        f"python: {json.dumps(text)}\n"
    )
    place = tmp_path / text
    overrides = {key: json.dumps(str(place)) for key in ("run.folder", "corpus.folder")}
    request = make_request(cluster, config=make_config("demo", overrides), folder=place)
    try:
        script = render(plan_job(request, kind))
    except ClusterError as error:
        assert "#SBATCH --" in str(error)  # its folder goes into a directive as well
        return
    seen = run_script(script, tmp_path)
    assert seen["environ"]["HOSTILE"] == text
    assert seen["environ"]["LMSCALE_SCRATCH"].startswith(f"/tmp/{text}/lmscale-")
    state = place / (".slurm" if kind == "corpus" else "slurm")
    assert seen["environ"]["PYTHONPATH"].startswith(f"{state}/{request.submission}/code")
    argv = seen["argv"]
    start = argv.index(text)
    binds = ("--bind", f"/{text}:/{text}", "--bind", f"/tmp/{text}:/tmp/{text}")
    assert argv[start : start + 7] == [text, "apptainer", "exec", *binds]
    assert argv[argv.index("-m") - 1] == os.path.expanduser(text)  # the interpreter
    assert str(place) in argv
    assert not [*tmp_path.rglob("CANARY"), *Path.cwd().glob("CANARY")]


def test_a_run_folder_that_no_directive_can_hold_is_refused_with_its_reason():
    config = make_config("demo", {"run.folder": json.dumps('/shared/say "hi"')})
    with pytest.raises(ClusterError, match=r'--output: .* it holds "; change this name'):
        render(plan_job(make_request(SMALL, config=config), "train"))


def test_a_percent_sign_in_a_folder_is_no_pattern_of_slurms():
    config = make_config("demo", {"run.folder": "/shared/50%j"})
    script = render(plan_job(make_request(SMALL, config=config), "train"))
    assert "#SBATCH --output=/shared/50%%j/slurm/job-%j.out\n" in script
