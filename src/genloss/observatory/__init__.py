"""What is read from finished rounds. The observatory reads run directories, and imports `genloss.core` alone.

results     the arms of a folder, and every round's metrics as numbers
tables      those numbers, arm by round, as text, Markdown and CSV
figures     the same as lines over rounds; and a study's panels
report      all three written into a folder (`genloss report`)
compare     arms compared over seeds: differences and trends, their intervals and verdicts
lineage     where records come from, what was made from them, which rounds learned from them (`genloss trace`)
ancestry    its arithmetic, on arrays
cards       what an exported round says of itself: README.md, Croissant (`genloss export`)
provenance  the same as a graph of W3C PROV
"""
