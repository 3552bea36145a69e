"""The command as a process of its own: torch never enters the code location."""

import sys

import dagster as dg


def run_command(context: dg.AssetExecutionContext, *arguments: str) -> dg.MaterializeResult:
    """Run `trialshards ARGUMENTS` and return what it reported through Dagster Pipes.

    Stopping the run sends SIGINT to the process and gives it 20 s for its checkpoint.
    """
    client = dg.PipesSubprocessClient()
    command = [sys.executable, "-m", "trialshards.cli", *arguments]
    return client.run(command=command, context=context).get_materialize_result()
