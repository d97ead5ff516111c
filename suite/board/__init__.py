"""What records become: fields, scores, intervals, ranks. Pure functions; `scores.py` and `suites.py` are the way in."""
