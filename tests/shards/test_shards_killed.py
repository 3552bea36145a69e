"""Real builds that are killed with `kill -9` at random moments: 20 here, 200 in `make soak`.

Each change that a build makes has its own death in `tests/crash`; these here are real processes.
"""

from soak.kills import run

KILLS = 20


def test_builds_killed_at_random_moments_leave_a_whole_store_and_the_last_equals_a_clean_one(
    tmp_path,
):
    summary = run(KILLS, seed=7, root=tmp_path)
    assert summary["final_build_equals_a_clean_one"]
    assert summary["kills"] == KILLS
    assert summary["versions"] > 2
    # Whether they struck while something was written or between two writes is chance with so few:
    # `tests/crash` kills at every change, and the 200 of `make soak` meet both.
    assert sum(summary["killed_while_writing"].values()) == KILLS
