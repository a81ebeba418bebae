"""Audits of canvases that were paid: by the rules, by an engine here, or by others for money.

`auditor` says what an auditor is asked and answers. `engine` is the one that runs here, and
`piecework.client.auditors` has those of the market. `rules` needs none. `confirmation` makes a
verdict of what they say, with the help of `more_canvases` and `suspicion`. `background` ends the
relation with a worker that failed.
"""
