"""The two processes of a run, which `suite/worker.py` joins, and the record they leave.

`method_process` is the method's; `scorer` and `policy_scorer`, with the judge's `gate`, hold the labels and say the
`outcome`; `report` makes the record.
"""
