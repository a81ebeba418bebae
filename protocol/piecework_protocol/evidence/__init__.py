"""Evidence files: what proves one job to somebody who has nothing else (clauses 10.1 to 10.8).

`members` has the JSON forms of signed objects, `file` the file, `check` the judge. A file needs no
database, wallet or network to be checked.
"""
