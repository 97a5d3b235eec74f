"""omen-bench churn: after a turnover in any order the index holds as many points, reaches them all, and finds about as
many of them as a fresh build does."""

import json
import os
import subprocess
import tempfile
import unittest

BENCH = os.path.join(os.environ.get("OMEN_BUILD", "build/release"), "omen-bench")
LIVE = 1000


class Churn(unittest.TestCase):
    def test_every_order_ends_with_all_points_in_reach(self):
        with tempfile.TemporaryDirectory() as out:
            made = [BENCH, "generate", "clustered", "--out", out, "--count", "2500", "--dim", "16"]
            subprocess.run(made + ["--queries", "100", "--seed", "3"], check=True, timeout=120)
            for order in ("window", "random", "cluster"):
                command = [BENCH, "churn", "--data", out, "--live", str(LIVE), "--turnovers", "1"]
                done = subprocess.run(command + ["--order", order], capture_output=True, timeout=300)
                self.assertEqual(done.returncode, 0, done.stderr)
                lines = [json.loads(line) for line in done.stdout.splitlines()]
                self.assertEqual([line["effort"] for line in lines], [20, 40, 80])
                for line in lines:
                    self.assertEqual((line["order"], line["live"], line["unreachable"]), (order, LIVE, 0))
                    self.assertGreater(line["recall"], line["recall_fresh"] - 0.03)

    def test_wrong_arguments_are_refused(self):
        for arguments in ([], ["--data", "x", "--order", "sideways"], ["--data", "x", "--live", "9"]):
            done = subprocess.run([BENCH, "churn"] + arguments, capture_output=True, timeout=60)
            self.assertEqual(done.returncode, 2, done.stderr)


if __name__ == "__main__":
    unittest.main()
