"""The postprocessing room: procedures that are listed in a table, run on their schedule, with every run on record."""
