"""Results and reports. results: what evaluate wrote, as a table; statistics: intervals and tests; plots and page: the
report. Loads no network. Imports train.data and train.engine."""
