"""genloss: a laboratory for recursive training, where models learn from data that models made.

The loop is in `genloss.loop`; everything that an experiment can vary is a small plug-in around it:

    domains/   what the data and the models are        generate/  how records are made (recipes)
    curate/    which generated records survive         mix/       which records train the next model
    evaluate/  what is measured in every round

Start with `genloss run rounds=1 size=256`; `genloss --help` lists the verbs.
"""

__version__ = "0.1.0"
