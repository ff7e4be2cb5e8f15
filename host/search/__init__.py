"""Search without a gradient: one sampler call carries many candidates, and the least wanted are dropped on the way.

search.py, config.py      a MODEL whose sampler calls search, and the settings
search_run.py             the state of one sampler call
selection.py              when to look, and which candidates stay
rows_model.py             the model, called for the candidates that are left
appraisal.py              how rare and how good the candidates are, from their clean estimates
record.py, report.py, work.py   what a search did, how the page shows it, and how far it is
"""
