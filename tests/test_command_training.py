"""`trialshards train` and `evaluate`: what they do alone, and what they tell Dagster (Pipes)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent / "training"))
from learnable import learnable_store, tiny_config

from training import train
from training.checkpoint import load_checkpoint
from trialshards.cli import main
from trialshards.pipes import RANKS, epoch_line, flatten_numbers, is_first_process, step_line


def write_run(folder: Path, kind: str = "per_step", **changes: Any) -> Path:
    """Write a store and the YAML of a config for it; return the file."""
    if not (folder / "store").exists():
        learnable_store(folder / "store", kind, n_trials=30)
    config = tiny_config(folder, **changes).model_dump(mode="json", exclude_defaults=True)
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def call(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_training_and_evaluation_are_two_commands_that_print_one_table(tmp_path: Path) -> None:
    file = write_run(tmp_path, epochs=1)
    trained = call("train", file, "--no-evaluate")
    assert trained.exit_code == 0, trained.output
    assert "finished after 1 epochs" in trained.output
    assert not (tmp_path / "run" / "evaluation").exists()
    scored = call("evaluate", file)
    assert scored.exit_code == 0, scored.output
    assert (tmp_path / "run" / "evaluation" / "metrics.json").exists()
    whole = call("train", file, "--renew")
    assert whole.output.endswith(scored.output)
    assert "RMSE of train mean" in scored.output


def test_evaluate_prints_json(tmp_path: Path) -> None:
    file = write_run(tmp_path, epochs=1)
    call("train", file, "--no-evaluate", "--out", tmp_path / "there")
    printed = json.loads(call("evaluate", file, "--json", "--out", tmp_path / "there").output)
    written = json.loads((tmp_path / "there" / "evaluation" / "metrics.json").read_text())
    assert printed == written
    assert printed["metrics"]["rmse"] > 0


def test_binary_targets_show_their_ranks(tmp_path: Path) -> None:
    file = write_run(tmp_path, "binary", epochs=1, target={"loss": "binary_cross_entropy"})
    output = call("train", file).output
    assert "AUROC" in output
    assert "average precision" in output


def test_evaluation_without_training_says_what_to_do(tmp_path: Path) -> None:
    done = call("evaluate", write_run(tmp_path))
    assert done.exit_code == 1
    assert "Train first" in done.output


def test_fresh_and_renew_contradict(tmp_path: Path) -> None:
    done = call("train", write_run(tmp_path), "--fresh", "--renew")
    assert done.exit_code == 2
    assert "--fresh and --renew contradict each other" in done.output


def test_renew_takes_another_config_where_plain_training_refuses(tmp_path: Path) -> None:
    call("train", write_run(tmp_path, epochs=1), "--no-evaluate")
    file = write_run(tmp_path, epochs=1, seed=8)
    assert call("train", file, "--no-evaluate").exit_code == 1
    assert call("train", file, "--no-evaluate", "--renew").exit_code == 0


def test_lines_of_the_log() -> None:
    metrics = {"epoch": 3.0, "train_loss": 0.03124, "val_loss": 0.02981, "lr": 0.0021}
    assert epoch_line(20, {**metrics, "rows_per_s": 12345.4, "seconds": 1.0}) == (
        "epoch 3/20: train_loss 0.03124, val_loss 0.02981, lr 0.0021, 12,345 rows/s"
    )
    place = {"epoch": 3.0, "step_in_epoch": 1200.0, "steps_per_epoch": 9500.0, "step_loss": 0.031}
    assert step_line(20, {**place, "rows_per_s": 12345.4}) == (
        "epoch 3/20, step 1,200/9,500: step_loss 0.031, 12,345 rows/s"
    )


def test_nested_metrics_become_plain_numbers() -> None:
    nested = {"n": 3, "auroc": None, "by_column": {"q": {"rmse": 0.5}}, "classes": ["a"]}
    assert flatten_numbers(nested) == {"n": 3, "by_column.q.rmse": 0.5}


@pytest.mark.parametrize("name", RANKS)
def test_only_the_first_process_speaks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in RANKS:
        monkeypatch.setenv(other, "0")
    assert is_first_process()
    monkeypatch.setenv(name, "1")
    assert not is_first_process()


# --- with a real Dagster ------------------------------------------------------------------------


def run_asset(*arguments: object) -> tuple[dg.ExecuteInProcessResult, list[str]]:
    """Materialize an asset that runs the command by Pipes; return the result and its log lines."""
    client = dg.PipesSubprocessClient(env={"OMP_NUM_THREADS": "1"})
    command = [sys.executable, "-m", "trialshards.cli", *map(str, arguments)]

    @dg.asset
    def job(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        return client.run(command=command, context=context).get_materialize_result()

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([job], instance=instance, raise_on_error=False)
        records = instance.all_logs(result.run_id)
    return result, [record.user_message for record in records]


def reported(result: dg.ExecuteInProcessResult) -> tuple[dict[str, Any], str]:
    (event,) = result.asset_materializations_for_node("job")
    metadata = {key: value.value for key, value in event.metadata.items()}
    return metadata, (event.tags or {})["dagster/data_version"]


def test_dagster_hears_of_epochs_and_gets_numbers(tmp_path: Path) -> None:
    file = write_run(tmp_path, epochs=2)
    result, lines = run_asset("train", file, "--renew", "--no-evaluate")
    assert result.success
    assert [line[:10] for line in lines if "train_loss" in line] == ["epoch 1/2:", "epoch 2/2:"]
    metadata, version = reported(result)
    saved = load_checkpoint(tmp_path / "run" / "last.ckpt")["state"]
    assert metadata["best_epoch"] == saved["best_epoch"]
    assert metadata["best_loss"] == pytest.approx(saved["best_loss"])
    assert (metadata["epochs"], metadata["steps"]) == (2, saved["step"])
    assert (metadata["status"], metadata["device"]) == ("finished", "cpu")
    assert metadata["run_folder"] == str(tmp_path / "run")
    assert metadata["store_version"] == "v0001"
    assert metadata["seconds"] > 0 < metadata["rows_per_s"]

    again, lines = run_asset("train", file, "--renew", "--no-evaluate")
    assert reported(again)[1] == version
    assert not any("train_loss" in line for line in lines)

    scored, _ = run_asset("evaluate", file)
    metrics, other = reported(scored)
    assert other != version
    assert (metrics["split"], metrics["baseline"]) == ("test", "train mean")
    document = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert metrics["n_trials"] == document["n_trials"]
    assert metrics["rmse"] == document["metrics"]["rmse"]
    assert metrics["by_column.effort.skill"] == document["metrics"]["by_column"]["effort"]["skill"]


STOPPED = """
import sys
sys.path[:0] = {path!r}
from test_command_training import run_asset
result, lines = run_asset("train", {file!r}, "--renew", "--no-evaluate")
"""


def stop_dagster_when(folder: Path, file: Path, ready: Path) -> None:
    """Start a Dagster run of its own, and terminate it once a file is there."""
    path = [str(Path(__file__).parent)]
    code = STOPPED.format(path=path, file=str(file))
    with (folder / "dagster.log").open("w") as log:
        run = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)
        give_up = time.monotonic() + 60
        while not ready.exists():
            assert run.poll() is None, (folder / "dagster.log").read_text()
            assert time.monotonic() < give_up
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        run.wait(timeout=60)


def test_a_terminated_dagster_run_goes_on_where_it_was(tmp_path: Path) -> None:
    steady = {"lr": 1e-4, "schedule": "constant"}
    endless = {"optimizer": steady, "checkpoint_steps": 5}
    file = write_run(tmp_path, epochs=100_000, **endless)
    last = tmp_path / "run" / "last.ckpt"
    stop_dagster_when(tmp_path, file, last)
    log = (tmp_path / "dagster.log").read_text()
    assert "sending SIGINT to subprocess" in log
    assert "Run the same command without --fresh to go on" in log
    state = load_checkpoint(last)["state"]
    assert state["step"] > 0

    file = write_run(tmp_path, epochs=state["epoch"] + 1, **endless)  # a little more is enough
    result, lines = run_asset("train", file, "--renew", "--no-evaluate")
    assert result.success, lines
    told = f"resumed {tmp_path / 'run'} after {state['epoch']} epochs, at step {state['step']}"
    assert told in lines
    assert reported(result)[0]["steps"] > state["step"]
    assert len([line for line in lines if "train_loss" in line]) == 1


def test_an_interrupted_command_fails_and_says_how_to_go_on(tmp_path: Path) -> None:
    file = write_run(tmp_path, epochs=100_000, checkpoint_steps=5)
    command = [sys.executable, "-m", "trialshards.cli", "train", str(file), "--renew"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as run:
        while not (tmp_path / "run" / "last.ckpt").exists():
            assert run.poll() is None
            time.sleep(0.02)
        os.kill(run.pid, signal.SIGINT)
        _, error = run.communicate(timeout=60)
    assert run.returncode == 1
    assert b"a checkpoint is in" in error
    assert b"without --fresh to go on" in error


def test_without_dagster_its_library_is_not_needed(tmp_path: Path) -> None:
    file = write_run(tmp_path, epochs=1)
    code = (
        "import sys; sys.modules['dagster_pipes'] = sys.modules['dagster'] = None\n"
        "from trialshards.cli import main\n"
        f"main(['train', {str(file)!r}, '--no-evaluate'], standalone_mode=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert train(tiny_config(tmp_path, epochs=1)).status == "finished"
