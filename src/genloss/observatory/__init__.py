"""What is read from finished rounds. The observatory reads run directories, and imports `genloss.core` alone.

results     the arms of a folder, and every round's metrics as numbers
tables      those numbers, arm by round, as text, Markdown and CSV
figures     the same as lines over rounds; and a study's panels
groups      arms over seeds: what a row of a table, a line and a band is
readings    what a page shows beside metrics: texts side by side, training sets by generation, cost
svg, page   report.html, one file without a network
report      all of them written into a folder (`genloss report`)
compare     arms compared over seeds: differences and trends, their intervals and verdicts
lineage     where one record comes from, and which rounds learned from it (`genloss trace`)
"""
