"""results.json: the store of records, what a record of scores holds, and paired comparisons."""
