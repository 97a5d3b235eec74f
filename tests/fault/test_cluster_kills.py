"""kill -9 of every process that has a part in a move, a drain or a join, at every step of it, OMEN_FAULT_REPEATS / 10 times."""
import os
import sys
import unittest
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "tests" / "integration"), str(TOP / "tools" / "python")]

import test_cluster_steps as steps

REPEATS = int(os.environ.get("OMEN_FAULT_REPEATS", 20))


def setUpModule():
    print(f"seed {steps.SEED}")


class Moves(steps.Move):
    test_a_move_ends_whoever_is_killed_at_whatever_step = None

    def test_whoever_is_killed_at_every_step_of_a_move(self):
        self.run_pairs([(step, who) for _ in range(max(1, REPEATS // 10)) for step in steps.STEPS for who in steps.WHO])


class Drains(steps.Drain):
    test_a_drain_ends_though_the_node_or_the_driver_is_killed = None

    def test_whoever_is_killed_at_every_step_of_a_drain(self):
        self.run_pairs([(step, who) for _ in range(max(1, REPEATS // 10)) for step in steps.STEPS for who in ("source", "driver")])


class Joins(steps.Add):
    test_a_node_that_is_killed_while_it_joins_is_one_member_in_the_end = None

    def test_many_kills_of_a_node_that_joins(self):
        self.run_joins(REPEATS)


if __name__ == "__main__":
    unittest.main()
