"""The checker of histories itself: it must take what is right and refuse what is not."""
import random
import unittest

from history import Op, linearizable


class Checker(unittest.TestCase):
    def test_takes_what_can_be_put_in_order(self):
        self.assertIsNone(linearizable([]))
        self.assertIsNone(linearizable([Op(0, 1, "write", 1), Op(2, 3, "read", 1)]))
        self.assertIsNone(linearizable([Op(0, 5, "write", 1), Op(1, 2, "read", None), Op(3, 4, "read", 1)]))
        self.assertIsNone(linearizable([Op(0, None, "write", 1), Op(1, 2, "read", None), Op(3, 4, "read", 1)]))  # carried out late
        self.assertIsNone(linearizable([Op(0, None, "write", 1), Op(1, 9, "write", 2), Op(10, 11, "read", 2)]))

    def test_refuses_stale_lost_and_returning_values(self):
        stale = [Op(0, 1, "write", 1), Op(2, 3, "write", 2), Op(4, 5, "read", 1)]
        lost = [Op(0, 1, "write", 1), Op(2, 3, "read", None)]
        back = [Op(0, 1, "write", 1), Op(2, 9, "write", 2), Op(3, 4, "read", 2), Op(5, 6, "read", 1)]
        invented = [Op(0, 1, "write", 1), Op(2, 3, "read", 7)]
        twice = [Op(0, None, "write", 1), Op(1, 2, "write", 2), Op(3, 4, "read", 1), Op(5, 6, "read", 2)]
        for name, history in [("stale", stale), ("lost", lost), ("back", back), ("invented", invented), ("twice", twice)]:
            self.assertIsNotNone(linearizable(history), name)

    def test_takes_every_run_of_a_real_register_and_refuses_it_with_one_read_changed(self):
        for seed in range(100):
            rng, value, history, now = random.Random(seed), None, [], 0.0
            for n in range(40):
                begin, point, end = now + rng.random(), now + 1 + rng.random(), now + 2 + rng.random()
                kind = rng.choice(["write", "read"])
                if kind == "write":
                    value = n
                history.append((point, Op(begin, end, kind, value)))
                now += rng.choice([0.5, 3.0])  # overlapping, or not
            # Values as of the order of the points: overlapping operations were carried out in that order.
            value, ordered = None, []
            for _, op in sorted(history):
                value = op.value if op.kind == "write" else value
                ordered.append(op if op.kind == "write" else op._replace(value=value))
            self.assertIsNone(linearizable(ordered), seed)
            reads = [i for i, op in enumerate(ordered) if op.kind == "read"]
            if reads:
                i = rng.choice(reads)
                wrong = ordered[:i] + [ordered[i]._replace(value=-1)] + ordered[i + 1:]
                self.assertIsNotNone(linearizable(wrong), seed)


if __name__ == "__main__":
    unittest.main()
