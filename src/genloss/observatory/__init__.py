"""What is read from finished rounds. The observatory reads run directories, and imports `genloss.core` alone.

results     the arms of a folder, and every round's metrics as numbers
tables      those numbers, arm by round, as text, Markdown and CSV
figures     the same as lines over rounds; and a study's panels
quantities  a metric's unit and range, by its name
groups      arms over seeds: what a row of a table, a line and a band is
readings    what a page shows beside metrics: texts side by side, training sets by generation, cost
svg, page   report.html, one file without a network
report      all of them written into a folder (`genloss report`)
compare     arms compared over seeds: differences and trends, their intervals and verdicts
lineage     where records come from, what was made from them, which rounds learned from them (`genloss trace`)
ancestry    its arithmetic, on arrays
verdict     whether an arm collapsed, in which published sense, since when, how sure: against a control (controls), by
            the tests of definitions; verdict_words says it
curves      the shapes that collapse has in theory, fitted to rounds
forecast    later rounds from the first ones, and the real data that would hold a metric (`genloss forecast`)
cards       what an exported round says of itself: README.md, Croissant (`genloss export`)
provenance  the same as a graph of W3C PROV
"""
