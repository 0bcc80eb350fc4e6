"""Statistics that data-based methods need of each model besides its weights, measured on text without labels.

measure.py measures, caches and hands out: `measure`, `statistics_for`, `statistics_at`; its MEASURES lists the kinds:
fisher.py (`fisher`) how much each parameter matters to the model's predictions,
gram.py (`gram`) the second moments of the inputs of each linear layer.
record.py is the record and its file: `Statistics`, `read_statistics`, `write_statistics`.
permute.py moves statistics into another basis, as the alignment moves the weights.
"""
