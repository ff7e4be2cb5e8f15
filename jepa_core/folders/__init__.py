"""Any number of pictures in folders: found, read, scored once, and kept in a table.

listing.py     the picture files in folders
reading.py     pixels of a picture file, of any kind and from any source
scorer.py      scores and embeddings of pictures, under settings that never change
journal.py     what has been scored, kept from run to run
run.py         scoring files: readers ahead of the encoder
cluster.py     scoring files on many machines, with Ray
comparison.py  novelty beside a reference
table.py       tables in parquet, and references as tables
collection.py  the pictures of a table, as report and select look at them
report.py      a table as one page; page/ holds its template, style and script
selection.py   the rare kept, duplicates dropped, the common thinned out
options.py     what commands have in common: encoders, devices, settings
curating.py    the commands report and select
commands.py    the commands of python -m jepa_core
"""
