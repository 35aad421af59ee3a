"""What a run says of its data: the summary that people read, joins between the tables, drift."""
