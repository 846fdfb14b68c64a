"""How time grows with the amount of work, on a machine that does other things as well."""

import math
import time


def doubling(work, some, repeats: int = 5) -> float:
    """How many times as long `work` takes for twice as much, from `some(1)` to `some(4)`: two doublings.

    Times are those of the process, the smallest of several: what else runs on the machine hardly changes them.
    """
    smallest = []
    for times in (1, 4):
        amount = some(times)
        taken = []
        for _ in range(repeats):
            start = time.process_time()
            work(amount)
            taken.append(time.process_time() - start)
        smallest.append(min(taken))
    return math.sqrt(smallest[1] / smallest[0])
