"""A team of agents that audits a Python code base, and the job that drives it.

    from flowray.skills.audit.job import AuditJob
    from flowray.skills.audit.team import local_team

    report = run_sequentially(AuditJob(Path("src")), local_team(), Path("out"))

How the parts lean on one another, lowest first: `findings` (the record), `sources` (reading and parsing, where bad
files become findings), one module for each analyser, `planning` (what there is to do), `ranking` and `combining` (what
matters), `job` (the order of the work), `report` (what a person reads), `team` (who does it).
"""
